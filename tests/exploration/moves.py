"""Everything that may happen next: what workers, sweep and person do, and what goes wrong."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from moorage.retry_policy import DeadLetterDecision
from tests.exploration.state import (
    DELIVERIES,
    IDLE,
    JOB,
    LIVE,
    NAMES,
    OUTPUTS,
    PERSON,
    PREDICTIONS,
    SERVER,
    SWEEP,
    WORKERS,
    Actor,
    Blocked,
    Lost,
    State,
    View,
    Violation,
    committed,
    replaced,
)
from tests.exploration.statements import ERRORS, MAX_CRASHES, Rules, decide_stored, verdict_on

WHO = ("worker 0", "worker 1", "sweep", "person", "server")
WRITES_BACK = (
    "record",
    "bury",
    "defer",
    "hand back",
    "poll",
    "discarded",
)  # tasks/step.py: asked after


@dataclass(frozen=True)
class Scenario:
    """Where it starts, and how finely transactions interleave."""

    start: State
    fine: bool = False  # each statement a step of its own; else each transaction
    late: str | None = None  # "out of order": the second delivery is the first prediction's, and speaks of the past
    polled: tuple[int, ...] = PREDICTIONS
    silent: tuple[int, ...] = ()  # predictions whose provider never answers a poll
    failures: tuple[str, ...] = tuple(ERRORS)
    orphans: bool = True


class Label(NamedTuple):
    """One step: who, what, on which row."""

    who: int
    what: str
    slot: int = JOB
    extra: Any = None

    def __str__(self) -> str:
        more = f" ({self.extra})" if self.extra is not None else ""
        return f"{WHO[self.who]}: {self.what} {NAMES[self.slot]}{more}"


class Step(NamedTuple):
    """A step and where it leads; `goes_wrong`: it is a fault, which nothing may depend on."""

    label: Label
    state: State
    goes_wrong: bool = False


def steps(state: State, scenario: Scenario, rules: Rules) -> Iterator[Step]:
    """Yield all that can happen in a state."""
    locked = {slot for actor in state.actors for slot, _ in actor.txn}
    for me in WORKERS:
        actor = state.actors[me]
        if actor.doing:
            yield from _work(state, me, actor, scenario, rules)
            yield from _trouble(state, me, actor, scenario)
        else:
            yield from _claims(state, me, locked, scenario, rules)
    yield from _release(state, locked, rules)
    yield from _sweep(state, scenario, rules)
    if scenario.orphans:
        yield from _orphans(state, locked, rules)
    yield from _person(state, scenario, rules)
    yield from _server(state)


def _as(state: State, me: int, actor: Actor, **changes: Any) -> State:
    return state._replace(actors=replaced(state.actors, me, actor), **changes)


def _row(state: State, slot: int, **changes: Any) -> State:
    return state._replace(db=replaced(state.db, slot, state.db[slot]._replace(**changes)))


# --- workers ----------------------------------------------------------------------------------------------------


def _claims(state: State, me: int, locked: set[int], scenario: Scenario, rules: Rules) -> Iterator[Step]:
    """Any row that is due: of outputs the most urgent one is claimed, and each may be that."""
    for slot in (*PREDICTIONS, *DELIVERIES, *OUTPUTS):
        row = state.db[slot]
        if row.state not in LIVE[slot] or (row.token and not rules.claims_leased) or slot in locked:
            continue
        if slot in PREDICTIONS and slot not in scenario.polled:
            continue
        if row.crashes >= MAX_CRASHES:
            if not any(a.doing == "poison" and a.slot == slot for a in state.actors):
                yield Step(Label(me, "finds poison:", slot), _as(state, me, Actor("poison", slot)))
            continue
        step = "ingest" if slot in DELIVERIES else "poll" if slot in PREDICTIONS else "keep"
        step = "discard" if row.state == "discarding" else step
        memo = scenario.late if slot == DELIVERIES[1] else None
        memo = ("silent" if slot in scenario.silent else "finished") if step == "poll" else memo
        token = state.next_token
        claimed = _row(state, slot, token=token, over=False, attempt=row.attempt + 1, crashes=row.crashes + 1)
        actor = Actor(step, slot, token, memo)
        yield Step(Label(me, f"claims to {step}", slot), _as(claimed, me, actor, next_token=token + 1))


def _work(state: State, me: int, actor: Actor, scenario: Scenario, rules: Rules) -> Iterator[Step]:
    row = state.db[actor.slot]
    if actor.doing == "unsure":
        yield from _asks_the_row(state, me, actor, rules)
    elif actor.doing == "keep" and decide_stored(state.db[JOB], actor.slot) == "wait" and row.token == actor.token:
        later = _row(state, actor.slot, token=0, over=False, attempt=row.attempt - 1, crashes=row.crashes - 1)
        if not any(slot == actor.slot for one in state.actors for slot, _ in one.txn):
            yield Step(Label(me, "postpones", actor.slot), _as(later, me, IDLE))
    elif actor.doing == "keep":
        objects = state.objects | {(actor.slot, rules.named(actor.token))}
        yield Step(Label(me, "uploads", actor.slot), _as(state, me, actor._replace(doing="record"), objects=objects))
        if state.failures and row.token == actor.token:
            for failure in scenario.failures:
                verdict = verdict_on(row, failure)
                doing = (
                    "bury" if isinstance(verdict, DeadLetterDecision) else "defer" if verdict.defers else "hand back"
                )
                failed = _as(state, me, actor._replace(doing=doing, memo=verdict), failures=state.failures - 1)
                yield Step(Label(me, "fails to download", actor.slot, failure), failed, goes_wrong=True)
    elif actor.doing == "discard":
        objects = state.objects - {(actor.slot, row.key)}
        deleted = _as(state, me, actor._replace(doing="discarded"), objects=objects)
        yield Step(Label(me, "deletes the objects of", actor.slot), deleted)
    else:
        yield from _transaction(state, me, actor, scenario, rules)
    locked = any(slot == actor.slot for one in state.actors for slot, _ in one.txn)
    if actor.token and row.token == actor.token and row.over and not locked:
        yield Step(Label(me, "renews its lease on", actor.slot), _row(state, actor.slot, over=False))


def _asks_the_row(state: State, me: int, actor: Actor, rules: Rules) -> Iterator[Step]:
    """An uncertain COMMIT: token still there means it did not happen, gone means it did."""
    label = Label(me, "asks after an uncertain COMMIT", actor.slot)
    if rules.deletes_after_uncertain:
        objects = state.objects - {(actor.slot, actor.token)}
        yield Step(Label(me, "takes its upload back", actor.slot), _as(state, me, IDLE, objects=objects))
    elif state.db[actor.slot].token == actor.token:
        yield Step(label, _as(state, me, actor._replace(doing=actor.memo[0], memo=actor.memo[1])))
    else:
        yield Step(label, _as(state, me, IDLE))


def _transaction(state: State, me: int, actor: Actor, scenario: Scenario, rules: Rules) -> Iterator[Step]:
    """Run the next statement, or all that are left; a statement that waits for a lock gives nothing."""
    statements = rules.transactions[actor.doing]
    name = actor.doing
    while True:
        if actor.at == len(statements):
            written = state._replace(db=committed(state.db, actor.txn))
            yield Step(Label(me, f"{name}: COMMIT", actor.slot), _as(written, me, IDLE))
            if state.faults and name in WRITES_BACK and me in WORKERS and state.actors[SERVER] == IDLE:
                yield Step(Label(me, f"{name}: COMMIT without an answer", actor.slot), _unsure(state, me, actor), True)
            return
        view = View(state, me, actor.txn)
        label = Label(me, f"{name}: {statements[actor.at].__name__}", actor.slot)
        try:
            changed = statements[actor.at](view, actor, rules)
        except Blocked:
            return
        except Violation as error:
            raise Violation(f"{error}; {label}") from error
        except Lost:
            yield Step(Label(me, f"{name}: rolls back, no row", actor.slot), _as(state, me, IDLE))
            return
        actor = (changed or actor)._replace(at=actor.at + 1, txn=view.written)
        if scenario.fine:
            yield Step(label, _as(state, me, actor))
            return


def _unsure(state: State, me: int, actor: Actor) -> State:
    left = Actor("ends what a client left", actor.slot, 0, None, 0, actor.txn)
    unsure = Actor("unsure", actor.slot, actor.token, (actor.doing, actor.memo))
    return _as(_as(state, me, unsure, faults=state.faults - 1), SERVER, left)


def _trouble(state: State, me: int, actor: Actor, scenario: Scenario) -> Iterator[Step]:
    row = state.db[actor.slot]
    holds = bool(actor.token) and row.token == actor.token
    if state.faults:
        dead = _as(state, me, IDLE, faults=state.faults - 1)
        yield Step(Label(me, "is killed, working on", actor.slot), _row(dead, actor.slot, over=True) if holds else dead,
                   goes_wrong=True)  # fmt: skip
    if state.faults and holds and not row.over:
        stalled = state._replace(faults=state.faults - 1)
        label = Label(me, "stalls past its lease on", actor.slot)
        yield Step(label, _row(stalled, actor.slot, over=True), goes_wrong=True)
    if state.stops and holds and not actor.txn and actor.doing in ("keep", "record", "discard"):
        verdict = verdict_on(row, "storage away")
        stopping = _as(state, me, actor._replace(doing="hand back", memo=verdict), stops=state.stops - 1)
        yield Step(Label(me, "stops and hands back", actor.slot), stopping, goes_wrong=True)


def _server(state: State) -> Iterator[Step]:
    """A transaction whose client is gone in COMMIT ends in either way, and at any later time."""
    left = state.actors[SERVER]
    if left.doing:
        over = _as(state, SERVER, IDLE)
        yield Step(Label(SERVER, "commits", left.slot), over._replace(db=committed(over.db, left.txn)))
        yield Step(Label(SERVER, "rolls back", left.slot), over)


# --- sweep and person -------------------------------------------------------------------------------------------


def _release(state: State, locked: set[int], rules: Rules) -> Iterator[Step]:
    for slot in (*PREDICTIONS, *DELIVERIES, *OUTPUTS):
        row = state.db[slot]
        if row.token and (row.over or rules.releases_unproved) and rules.releases and slot not in locked:
            yield Step(Label(SWEEP, "releases the lease on", slot), _row(state, slot, token=0, over=False))


def _sweep(state: State, scenario: Scenario, rules: Rules) -> Iterator[Step]:
    actor = state.actors[SWEEP]
    if not actor.doing and state.db[JOB].state in ("open", "keeping"):
        actor = Actor("check", JOB)
    if actor.doing == "check":
        yield from _transaction(state, SWEEP, actor, scenario, rules)


def _orphans(state: State, locked: set[int], rules: Rules) -> Iterator[Step]:
    """
    Delete objects that no row names and whose token is on no live lease.

    That is told under the output's row lock, and holds for ever: deleting may come at any later time.
    """
    actor = state.actors[SWEEP]
    if actor.doing == "orphan":
        o, token = actor.slot, actor.token
        leased = rules.orphans == "two looks" and state.db[o].token == token
        objects = state.objects if leased else state.objects - {(o, token)}
        what = "leaves an object of" if leased else "deletes an object of"
        yield Step(Label(SWEEP, what, o, f"token {token}"), _as(state, SWEEP, IDLE, objects=objects))
        return
    for o, token in sorted(state.objects):
        row = state.db[o]
        named = row.key == token and row.state in ("kept", "discarding")
        refused = rules.orphans == "row lock" and (row.token == token or o in locked)
        if not (actor.doing or named or refused):
            label = Label(SWEEP, "finds nobody's object of", o, f"token {token}")
            yield Step(label, _as(state, SWEEP, Actor("orphan", o, token)))


def _person(state: State, scenario: Scenario, rules: Rules) -> Iterator[Step]:
    actor = state.actors[PERSON]
    if actor.doing:
        yield from _transaction(state, PERSON, actor, scenario, rules)
    elif state.replays:
        for slot in (*PREDICTIONS, *DELIVERIES, *OUTPUTS):
            if state.db[slot].letter:
                asked = state._replace(replays=state.replays - 1)
                yield from _transaction(asked, PERSON, Actor("replay", slot), scenario, rules)
