"""Breadth-first search through every state, so that a counterexample is the shortest there is."""

from array import array
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tests.exploration import laws
from tests.exploration.moves import Label, Scenario, steps
from tests.exploration.state import JOB, LIVE, NAMES, OUTPUTS, Actor, State, Violation
from tests.exploration.statements import Rules


@dataclass(frozen=True)
class Counterexample:
    """A broken law and the shortest way there."""

    law: str
    way: tuple[Label, ...]
    end: State

    def __str__(self) -> str:
        lines = [f"{number:3}. {label}" for number, label in enumerate(self.way, start=1)]
        return "\n".join([self.law, *lines, *_shown(self.end)])


def _shown(state: State) -> list[str]:
    job, *rows = state.db
    lines = [f"     job {job.state}, published {[NAMES[o] for o in job.variants]}"]
    for name, row in zip(NAMES[1:], rows, strict=True):
        if row.state:
            more = (
                [f"leased {row.token}"] * bool(row.token)
                + ["dead letter"] * row.letter
                + ["deferred"] * row.deferred
                + ["in reserve"] * row.reserve
            )
            lines.append(f"     {name} {', '.join([row.state, *more])}")
    return lines


@dataclass
class Explored:
    """What a search saw."""

    states: int = 0
    steps: int = 0
    rests: int = 0
    counterexample: Counterexample | None = None
    seen_labels: set[str] = field(default_factory=set)


def canonical(state: State) -> Any:
    """Return the same value for states that differ only in the names of tokens and workers (but for ties)."""
    names: dict[int, int] = {0: 0}

    def name(token: int) -> int:
        return names.setdefault(token, len(names))

    first, second, *others = state.actors
    order = (second, first) if _rank(second) < _rank(first) else (first, second)
    actors = [_of_actor(actor, name) if actor.doing else () for actor in (*order, *others)]
    job, *rows = state.db
    table = [_of_row(slot, row, name) for slot, row in enumerate(rows, start=1)]
    objects = sorted((o, names.get(token, len(names))) for o, token in state.objects)  # the rest is nobody's
    left = (state.faults, state.failures, state.replays, state.stops)
    return (job, *table, *actors, tuple(objects), left)


def _rank(actor: Actor) -> tuple[str, int, int, int]:
    return (actor.doing, actor.slot, actor.at, len(actor.txn))


def _of_row(slot: int, row: Any, name: Any) -> Any:
    if slot == JOB:
        return row
    if row.state in LIVE[slot]:
        return (row.state, name(row.token), row.over, row.attempt, row.crashes, name(row.key), row.letter,
                row.deferred, row.reserve)  # fmt: skip
    return (row.state, name(row.key), row.letter, row.stopped and slot in OUTPUTS)


def _of_actor(actor: Any, name: Any) -> Any:
    txn = tuple((slot, _of_row(slot, row, name)) for slot, row in actor.txn)
    return (actor.doing, actor.slot, name(actor.token), actor.memo, actor.at, txn)


class Search:
    """A search from one scenario under one set of rules, to the fixpoint or to the first broken law."""

    def __init__(self, scenario: Scenario, rules: Rules, *, most_states: int = 2_000_000) -> None:
        self.scenario, self.rules, self.most_states = scenario, rules, most_states
        self.found = Explored()
        self._number: dict[Any, int] = {}
        self._parent = array("l")
        self._label: list[Label | None] = []
        self._back: list[array[int]] = []  # for each state those that lead there with nothing going wrong
        self._rests: list[int] = []

    def run(self) -> Explored:
        """Return what was seen. A search that reaches `most_states` has proved nothing and says so by an error."""
        queue = deque([(self._add(self.scenario.start, -1, None), self.scenario.start)])
        while queue and self.found.counterexample is None:
            number, state = queue.popleft()
            queue.extend(self._expand(number, state))
            if len(self._number) > self.most_states:
                raise RuntimeError(f"more than {self.most_states} states: make the scenario smaller")
        self.found.states = len(self._number)
        self.found.rests = len(self._rests)
        if self.found.counterexample is None:
            self._check_that_all_can_rest()
        return self.found

    def _expand(self, number: int, state: State) -> list[tuple[int, State]]:
        new = []
        try:
            for step in steps(state, self.scenario, self.rules):
                self.found.steps += 1
                self.found.seen_labels.add(step.label.what)
                before = len(self._number)
                at = self._add(step.state, number, step.label)
                if not step.goes_wrong:
                    self._back[at].append(number)
                law = laws.broken_by(state, step)
                if at == before:
                    law = law or laws.broken(step.state)
                    new.append((at, step.state))
                if law:
                    way = (*self._way(number), step.label)
                    self.found.counterexample = Counterexample(law, way, step.state)
                    return []
        except Violation as error:
            self.found.counterexample = Counterexample(str(error), tuple(self._way(number)), state)
        return new

    def _add(self, state: State, parent: int, label: Label | None) -> int:
        key = canonical(state)
        if key not in self._number:
            self._number[key] = len(self._number)
            self._parent.append(parent)
            self._label.append(label)
            self._back.append(array("l"))
            if laws.at_rest(state):
                self._rests.append(self._number[key])
        return self._number[key]

    def _way(self, number: int) -> list[Label]:
        way = []
        while self._parent[number] >= 0:
            label = self._label[number]
            assert label is not None
            way.append(label)
            number = self._parent[number]
        return way[::-1]

    def _check_that_all_can_rest(self) -> None:
        """From every state a state of rest must be reachable with nothing more going wrong: no wait is for ever."""
        reached = set(self._rests)
        queue = deque(self._rests)
        while queue:
            for number in self._back[queue.popleft()]:
                if number not in reached:
                    reached.add(number)
                    queue.append(number)
        stuck = next((n for n in range(len(self._label)) if n not in reached), None)
        if stuck is not None:
            law = "rule 2: from here nothing comes to rest"
            self.found.counterexample = Counterexample(law, tuple(self._way(stuck)), self._replayed(stuck))

    def _replayed(self, number: int) -> State:
        """Return a state again: states are not kept, only how they were reached."""
        state = self.scenario.start
        for label in self._way(number):
            state = next(step.state for step in steps(state, self.scenario, self.rules) if step.label == label)
        return state


def explore(scenario: Scenario, rules: Rules, *, most_states: int = 2_000_000) -> Explored:
    """Return what a search from a scenario saw."""
    return Search(scenario, rules, most_states=most_states).run()
