"""The model that is searched and the real statements must be one thing: both take the same steps, side by side."""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import pytest

from db import jobs
from db.connection import Connection
from tasks.step import Deps
from tests.exploration import broken, laws, race, scenarios
from tests.exploration.moves import Label, Scenario, Step, steps
from tests.exploration.real import Real
from tests.exploration.state import IDLE, O0, O1, PERSON, PREDICTIONS, SWEEP, Actor, Db, State

SEEDS = [pytest.param(seed, marks=[pytest.mark.prove] * (seed > 0)) for seed in range(5)]
LONGEST = 70


def start(partial: str = "keep") -> Scenario:
    """Return the beginning that the real rows have too, with much that may go wrong."""
    state = scenarios.awaiting(faults=3, failures=3, replays=2, stops=1)
    job = state.db[0]._replace(partial=partial)
    return Scenario(state._replace(db=(job, *state.db[1:])), silent=(PREDICTIONS[1],))


def take(real: Real, conn: Connection, before: State, step: Step) -> State:
    """Take a step in both worlds, and compare what is committed then."""
    real.do(step.label, before, step.state)
    assert real.read(conn) == step.state.db, f"after {step.label}"
    locked = {slot for actor in step.state.actors for slot, _ in actor.txn}
    for o, token in step.state.objects:
        row = step.state.db[o]
        named = row.key == token and row.state in ("kept", "discarding")
        if o not in locked:
            assert real.is_orphan(conn, token) == (not named and row.token != token), f"after {step.label}"
    return step.state


@pytest.fixture
def begin(deps: Deps) -> Iterator[Callable[..., Real]]:
    made: list[Real] = []

    def begin(name: str, partial: str = "keep") -> Real:
        made.append(Real(deps, name, partial=partial))
        return made[-1]

    yield begin
    for real in made:
        real.close()


@pytest.mark.parametrize("partial", ["keep", "discard"])
@pytest.mark.parametrize("seed", SEEDS)
def test_random_walks_lead_both_to_the_same_rows(
    begin: Callable[..., Real], conn: Connection, seed: int, partial: str
) -> None:
    """A proof about a model that has drifted from the code proves nothing."""
    for walk in range(5):
        chance = random.Random(f"{partial} {seed} {walk}")
        scenario, state = start(partial), start(partial).start
        real = begin(f"walk-{walk}", partial)
        way: list[Label] = []

        while len(way) < LONGEST and not laws.at_rest(state):
            step = chance.choice([s for s in steps(state, scenario, broken.CORRECT) if s.state != state])
            way.append(step.label)
            try:
                state = take(real, conn, state, step)
            except AssertionError as error:
                raise AssertionError("\n".join([str(error), *map(str, way)])) from error

        real.close()
        assert laws.broken(state) is None


# --- the ways that broke the broken systems -----------------------------------------------------------------------

PREFIX = ("worker 0: claims to ingest d0", "worker 0: ingest: COMMIT d0")
STORED = ("worker 0: claims to keep o0", "worker 0: uploads o0", "worker 1: claims to keep o1", "worker 1: uploads o1")
BURIED = ("worker 1: claims to keep o1", "worker 1: fails to download o1 (gone)", "worker 1: bury: COMMIT o1")


def follow(real: Real, conn: Connection, way: Sequence[str]) -> State:
    """Take named steps in both worlds; returns where they lead."""
    scenario = start()
    state = scenario.start
    for said in (*PREFIX, *way):
        state = take(real, conn, state, _named(steps(state, scenario, broken.CORRECT), said))
    return state


def _named(offered: Iterable[Step], said: str) -> Step:
    found = {str(step.label): step for step in offered}
    assert said in found, f"{said!r} cannot happen; what can: {sorted(found)}"
    return found[said]


def test_the_final_write_is_fenced(begin: Callable[..., Real], conn: Connection) -> None:
    """The shortest break of a system without the fence: a worker that woke up too late."""
    state = follow(
        begin("fence"),
        conn,
        (
            "worker 0: claims to keep o0",
            "worker 0: uploads o0",
            "worker 0: stalls past its lease on o0",
            "sweep: releases the lease on o0",
            "worker 1: claims to keep o0",
            "worker 0: record: rolls back, no row o0",
            "worker 1: uploads o0",
            "worker 1: record: COMMIT o0",
        ),
    )

    assert state.db[O0].key == 3  # what the third claim stored: ingest's was the first


@pytest.mark.parametrize("ends", ["commits", "rolls back"])
def test_an_uncertain_commit_is_decided_by_the_row(begin: Callable[..., Real], conn: Connection, ends: str) -> None:
    """Deleting the upload, or recording it twice, would be wrong in one of the two cases."""
    begun = ("worker 0: claims to keep o0", "worker 0: uploads o0", "worker 0: record: COMMIT without an answer o0")
    asked = (f"server: {ends} o0", "worker 0: asks after an uncertain COMMIT o0")
    again = () if ends == "commits" else ("worker 0: record: COMMIT o0",)

    state = follow(begin("uncertain"), conn, (*begun, *asked, *again))

    assert state.db[O0].state == "kept"


def test_an_uncertain_commit_may_be_asked_after_before_it_is_done(begin: Callable[..., Real], conn: Connection) -> None:
    """The row still shows the token while the server works on the COMMIT: recording again must find it gone."""
    state = follow(
        begin("early"),
        conn,
        (
            "worker 0: claims to keep o0",
            "worker 0: uploads o0",
            "worker 0: record: COMMIT without an answer o0",
            "worker 0: asks after an uncertain COMMIT o0",
            "server: commits o0",
            "worker 0: record: rolls back, no row o0",
        ),
    )

    assert state.db[O0].state == "kept"


def test_a_file_is_not_replayed_while_its_job_awaits_a_prediction(begin: Callable[..., Real], conn: Connection) -> None:
    """An open job counts no outputs: a file kept then would be published by nobody."""
    state = follow(
        begin("open"),
        conn,
        (
            *(f"worker 0: {step}" for o in ("o0", "o1")
              for step in (f"claims to keep {o}", f"fails to download {o} (gone)", f"bury: COMMIT {o}")),
            "person: replay: rolls back, no row o0",
        ),
    )  # fmt: skip

    assert state.db[O0].state == "dead"


# --- races: two real transactions, statement by statement ---------------------------------------------------------

RUNS = 5
RACES = {
    "two that record the last two files": (STORED, 0, 1),
    "a record and a burial": ((*STORED[:2], *BURIED[:2]), 0, 1),
    "a record and a replay": ((*STORED[:2], *BURIED), 0, PERSON),
    "a record and the sweep's count": ((*BURIED, *STORED[:2]), 0, SWEEP),
    "a record and a late webhook": (("worker 1: claims to ingest d1", *STORED[:2]), 0, 1),
    "a burial and the sweep's count": (
        ("worker 0: claims to keep o0", "worker 0: fails to download o0 (gone)"),
        0,
        SWEEP,
    ),
}


@pytest.mark.parametrize("name", RACES)
def test_a_race_ends_as_one_of_its_orders_does(
    begin: Callable[..., Real], conn: Connection, database_url: str, name: str
) -> None:
    """Where two transactions meet, the locks must leave only what the model's locks leave."""
    way, *who = RACES[name]
    for seed in range(RUNS):
        real = begin(f"{name} {seed}")
        state = follow(real, conn, way)
        racers = [_racer(real, state, one, database_url) for one in who]

        race.run(racers, random.Random(f"{name} {seed}"), conn)

        ended = real.read(conn)
        assert ended in _outcomes(state, who)
        assert laws.broken(state._replace(db=ended, actors=(IDLE,) * 5)) is None


def test_without_the_job_lock_postgresql_breaks_as_the_model_does(
    begin: Callable[..., Real], conn: Connection, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Races that could not show the known break would show no unknown one."""
    broken_laws = set()

    for seed in range(RUNS):
        real = begin(f"unlocked {seed}")
        state = follow(real, conn, STORED)
        with monkeypatch.context() as patched:
            patched.setattr(jobs, "LOCK", jobs.LOCK.replace("FOR UPDATE", ""))
            race.run([_racer(real, state, one, database_url) for one in (0, 1)], random.Random(seed), conn)
        ended = state._replace(db=real.read(conn), actors=(IDLE,) * 5)
        broken_laws.add(laws.broken(ended))

    assert "rule 3: no output is live, and nobody settled the job" in broken_laws


def _racer(real: Real, state: State, one: int, database_url: str) -> race.Racer:
    actor = state.actors[one]
    if one == PERSON:
        actor = Actor("replay", O1)
    if one == SWEEP:
        actor = Actor("check")
    return race.Racer(database_url, real.transaction(actor.doing, actor.slot, actor.token, actor.memo))


def _outcomes(state: State, who: Sequence[int]) -> list[Db]:
    """Return the rows that the model ends with, over every interleaving of the two transactions' statements."""
    scenario = replace(start(), fine=True)
    ends, waiting = [], [(state, frozenset[int]())]
    while waiting:
        at, done = waiting.pop()
        if done == set(who):
            ends.append(at.db)
        for step in steps(at, scenario, broken.CORRECT):
            one = step.label.who
            if one in who and one not in done and ": " in step.label.what and not step.goes_wrong:
                ended = not step.state.actors[one].doing
                waiting.append((step.state, done | {one} if ended else done))
    return ends
