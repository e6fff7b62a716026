"""Step keep claims the most urgent output that is due, whatever the order of the wakes."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import pytest

from bench.round_trips import RoundTripCounter, run_step
from db import output_claims
from db.connection import Connection
from embedded.stack import Stack
from moorage.model import Lease, Wake
from tasks.jobs import replay
from tasks.sweeps import dispatch
from tests.integration.core import LEASED_BY, World, database_of, world

FILL = """
BEGIN;
SET LOCAL session_replication_role = replica;
INSERT INTO outputs (id, job_id, prediction_id, idx, path, source_kind, source, expires_at, state, run_at, woken_at)
SELECT gen_random_uuid(), o.job_id, o.prediction_id, n, n::text, 'url', 'https://x/' || n,
       moment() + make_interval(secs => 600 + n), 'waiting', moment(), moment()
  FROM outputs o, generate_series(1, %(count)s) AS n WHERE o.id = %(id)s;
ANALYZE outputs
"""


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "urgency")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def waiting(at: World, *expiries: int | None) -> list[UUID]:
    """Return due outputs, one with each expiry in seconds from now."""
    ids = at.outputs(at.keeping([at.source.picture(n) for n in range(len(expiries))]).job_id)
    for output_id, seconds in zip(ids, expiries, strict=True):
        sql = "UPDATE outputs SET expires_at = moment() + make_interval(secs => %s) WHERE id = %s"
        at.conn.execute(sql, (seconds, output_id))
    return ids


def claim(at: World, output_id: UUID) -> Lease | None:
    return output_claims.claim(at.deps.database, output_id, leased_by=LEASED_BY, lease_seconds=30, max_crashes=5)[0]


def claimed(at: World, output_id: UUID) -> UUID | None:
    lease = claim(at, output_id)
    return lease.row_id if lease else None


@contextmanager
def counted_keeps(at: World) -> Iterator[list[UUID | None]]:
    """Collect the row that each keep step claims, None for an empty claim."""
    found: list[UUID | None] = []
    original = output_claims.claim

    def note(*args, **options):
        result = original(*args, **options)
        found.append(result[0] and result[0].row_id)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output_claims, "claim", note)
        yield found


def test_the_most_urgent_output_is_claimed_whatever_the_wake_names(at: World) -> None:
    """The broker's order says nothing about when URLs expire."""
    never, late, soon, past = waiting(at, None, 500, 60, -5)

    assert [claimed(at, never) for _ in range(5)] == [past, soon, late, never, None]


def test_of_equal_expiries_the_longest_due_is_first(at: World) -> None:
    """Nobody waits for ever behind later ones."""
    first, second, third = waiting(at, None, None, None)
    at.conn.execute("UPDATE outputs SET run_at = moment() - interval '1 h' WHERE id = %s", (second,))
    at.conn.execute("UPDATE outputs SET run_at = moment() + interval '1 h' WHERE id = %s", (third,))

    assert [claimed(at, third) for _ in range(3)] == [second, first, None]


def test_while_something_is_paused_the_named_output_is_claimed(at: World) -> None:
    """Dispatch has chosen it; the paused ones may be all the most urgent, and would be read at each claim."""
    soon, late = waiting(at, 60, 500)
    at.conn.execute("INSERT INTO pauses (target, paused_by) VALUES ('fal', 'ann')")
    try:
        assert claimed(at, late) == late
        at.conn.execute("INSERT INTO pauses (target, paused_by) VALUES ('replicate', 'ann')")
        assert claimed(at, soon) is None
    finally:
        at.conn.execute("DELETE FROM pauses")


def test_poison_is_buried_by_its_wake_while_others_are_due(at: World) -> None:
    """It must not wait for a quiet hour."""
    soon, poison = waiting(at, 60, 500)
    at.conn.execute("UPDATE outputs SET crashes = 5, attempt = 5 WHERE id = %s", (poison,))

    at.step("keep", poison)

    assert (at.state("outputs", soon), at.state("outputs", poison)) == ("kept", "dead")
    assert [letter["category"] for letter in at.letters(poison)] == ["POISON"]


def test_a_burst_is_claimed_once_an_output(at: World) -> None:
    """Dispatch leaves alone what ingest wakes, and the order of the wakes does not matter."""
    wakes = []
    for n in range(10):
        wakes += at.ingested([at.source.picture(4 * n + m) for m in range(4)])
    random.Random(5).shuffle(wakes)

    with counted_keeps(at) as claims:
        for number, wake in enumerate(wakes):
            if number % 8 == 0:
                sent = dispatch.dispatch_due(at.deps, lambda _queue: 40 - number, len)  # noqa: B023
                assert sent["keep"] == 0
            at.step(wake.step, wake.row_id)

    assert len(claims) == len(set(claims)) == 40
    assert at.one("SELECT count(*) FROM outputs WHERE state = 'kept' AND attempt = 1") == 40


def test_lost_wakes_are_replaced_when_the_queue_has_fewer_than_are_due(at: World) -> None:
    """A crash between the commit and the publish: until then each wake takes the most urgent output, named or not."""
    lost, other = (at.ingested([at.source.picture(n)])[0].row_id for n in range(2))
    sent: list[UUID] = []

    def dispatched(depth: int) -> list[UUID]:
        sent.clear()
        dispatch.dispatch_due(at.deps, lambda _queue: depth, lambda wakes: sent.extend(w.row_id for w in wakes) or 1)
        return sent

    assert dispatched(2) == []
    assert dispatched(1) == [other]
    at.step("keep", other)
    assert (at.state("outputs", lost), at.state("outputs", other)) == ("kept", "waiting")
    assert dispatched(1) == []
    assert dispatched(0) == [other]


def test_a_replay_notes_its_wake(at: World) -> None:
    """Dispatch would wake the output a second time."""
    (output_id,) = at.outputs(at.keeping([at.source.broken()]).job_id)
    at.step("keep", output_id)
    (letter,) = at.letters(output_id)

    wake = at.deps.database.run(lambda conn: replay.replay_dead_letter(conn, letter["id"], "cli"))

    assert wake == Wake("keep", output_id)
    assert at.row("outputs", output_id)["woken_at"] is not None


def test_a_repeated_wake_is_one_empty_claim(at: World) -> None:
    """One round trip, and no statement about poison."""
    counter = RoundTripCounter()

    assert run_step(at.deps, counter, "keep", uuid4()) == []
    assert counter.total() == 1


@pytest.mark.parametrize("count", [20_000, pytest.param(100_000, marks=pytest.mark.prove)])
def test_the_claim_is_flat_in_the_number_of_due_outputs(at: World, count: int) -> None:
    """The cost of an output must not grow with the burst it comes in."""
    (output_id,) = waiting(at, 60)
    at.conn.queue(FILL, {"id": output_id, "count": count})

    for sql in (output_claims.CLAIM, output_claims.WAKE):
        rows = explain(at.conn, sql, output_id)
        assert "outputs_urgent" in rows
        hits = int(rows.split("Buffers: shared hit=")[1].split()[0])
        assert hits < 400, rows
    at.conn.execute("ROLLBACK")


ARRIVE = """
BEGIN;
SET LOCAL session_replication_role = replica;
INSERT INTO outputs (id, job_id, prediction_id, idx, path, source_kind, source, expires_at, state, run_at, woken_at)
SELECT gen_random_uuid(), o.job_id, o.prediction_id, %(first)s + n, (%(first)s + n)::text, 'url', 'https://x/' || n,
       moment() + make_interval(hours => %(hours)s), 'waiting', moment(), moment()
  FROM outputs o, generate_series(1, %(count)s) AS n WHERE o.id = %(id)s;
COMMIT
"""


class Flood:
    """Files of two lives, and workers that keep one file in a unit of time, in the order of wakes and claims."""

    def __init__(self, at: World, count: int) -> None:
        self.at, self.count, self.kept_at, self.most_queued = at, count, dict[int, int](), 0
        (self.base,) = waiting(at, 86_400)
        claim(at, self.base)
        self.queue: list[Wake] = []

    def arrive(self, first: int, count: int, hours: int) -> None:
        """Insert waiting files whose direct wakes a full queue left to dispatch."""
        args = {"id": self.base, "first": first, "count": count, "hours": hours}
        self.at.conn.queue(ARRIVE, args)

    def keep(self, files: int) -> None:
        """Let workers keep files; dispatch looks at the queue after each sixteenth."""
        for _ in range(files):
            if len(self.kept_at) % 16 == 0 or not self.queue:
                dispatch.dispatch_due(self.at.deps, lambda _queue: len(self.queue), self.send, ["keep"])
                self.most_queued = max(self.most_queued, len(self.queue))
            lease = claim(self.at, self.queue.pop(0).row_id)
            assert lease is not None
            sql = """UPDATE outputs SET state = 'dead', category = 'KEPT', run_at = NULL, ended_at = moment(),
                            lease_token = NULL WHERE id = %s RETURNING idx"""
            self.kept_at[self.at.one(sql, lease.row_id)] = len(self.kept_at)

    def send(self, wakes: list[Wake]) -> int:
        self.queue += wakes
        return len(wakes)

    def late(self) -> set[int]:
        """Return the files that expired: one in forty lives a quarter of the time that the others need."""
        arrived = self.count // 10
        lives = {idx: arrived + self.count // 4 if idx >= self.count else 2 * self.count for idx in self.kept_at}
        return {idx for idx, kept_at in self.kept_at.items() if kept_at > lives[idx]}


@pytest.mark.parametrize("count", [160, pytest.param(2000, marks=pytest.mark.prove)])
@pytest.mark.parametrize("is_ordered", [True, False], ids=["by expiry", "first come"])
def test_what_expires_first_is_kept_in_time_in_a_flood(
    at: World, count: int, is_ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000 files of a long life wait, then 50 of a short one come. Without the order by expiry these are lost."""
    if not is_ordered:
        for name in ("CLAIM", "WAKE"):
            text = getattr(output_claims, name).replace("ORDER BY expires_at, run_at", "ORDER BY run_at")
            monkeypatch.setattr(output_claims, name, text)
    flood, few = Flood(at, count), count // 40
    flood.arrive(0, count - 1, hours=20)
    flood.keep(count // 10)
    flood.arrive(count, few, hours=1)
    flood.keep(count - 1 + few - count // 10)

    assert flood.most_queued == 64
    assert len(flood.kept_at) == count - 1 + few
    assert flood.late() == (set() if is_ordered else set(range(count + 1, count + 1 + few)))


def explain(conn: Connection, sql: str, output_id: UUID) -> str:
    args = {
        "id": output_id,
        "token": uuid4(),
        "leased_by": LEASED_BY,
        "lease_seconds": 30,
        "max_crashes": 5,
        "worker": "node@test/",
        "share": 4,
    }
    query = conn.queue(f"EXPLAIN (ANALYZE, BUFFERS) {sql}", {**args, "limit": 8, "queued": 56, "first": 64})
    return "\n".join(row["QUERY PLAN"] for row in query.rows)
