"""Submission by turns: who is next at a provider, however many predictions of others wait there."""

import random
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from uuid import UUID, uuid4

import pytest

from db import submission_turns
from db.connection import Connection
from db.reports import metrics
from embedded.stack import Stack
from moorage.model import Wake
from tasks.sweeps import dispatch
from tests.integration.core import LEASED_BY, World, database_of, prediction, together, world
from tests.integration.studio import entry, open_studio, ordered

PLAN = """
INSERT INTO predictions (id, job_id, seq, entry, provider, model, owner, state, deadline_at, run_at)
SELECT ('01900000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, gen_random_uuid(), 0, 0, %(provider)s,
       %(model)s, %(owner)s, 'planned', moment() + interval '1 h', moment() - interval '1 h'
  FROM generate_series(%(first)s, %(first)s + %(count)s - 1) AS n
"""
END = """
UPDATE predictions SET state = 'cancelled', run_at = NULL, ended_at = moment(), lease_token = NULL WHERE id = %s
"""


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "turns")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with (
        open_studio() as studio,
        world(
            stack,
            url,
            replicate_api_url=studio.url,
            fal_key="id:secret",
            fal_queue_url=studio.url,
            egress_allow=(studio.address,),
            in_flight="replicate=3,replicate:Kling=1",
        ) as made,
    ):
        made.conn.execute("SET session_replication_role = replica")  # predictions without jobs
        made.conn.execute("DELETE FROM cursors")
        made.studio = studio  # type: ignore[attr-defined]
        yield made


class Queue:
    """Planned predictions without jobs, submitted one by one."""

    def __init__(self, at: World, in_flight: dict[str, int] | None = None) -> None:
        self.at = at if in_flight is None else at.changed(in_flight=in_flight)
        self.number = 0
        self.running: list[UUID] = []

    def plan(self, owner: str, count: int = 1, provider: str = "replicate", model: str = "m") -> list[UUID]:
        given = {"owner": owner, "count": count, "provider": provider, "model": model, "first": self.number}
        self.at.conn.execute(PLAN, given)
        self.number += count
        return [UUID(f"01900000-0000-7000-8000-{self.number - count + n:012}") for n in range(count)]

    def submit(self, named: UUID) -> UUID | None:
        """Claim what a wake leads to; return the row."""
        who = {"leased_by": LEASED_BY, "lease_seconds": 30.0, "max_crashes": 5}
        lease, _ = submission_turns.claim(self.at.deps.database, named, self.at.deps.settings, passed_on=(), **who)
        if lease is None:
            return None
        self.running.append(lease.row_id)
        return lease.row_id

    def end(self, row_id: UUID) -> None:
        self.at.conn.execute(END, (row_id,))
        self.running.remove(row_id)

    def serve(self, count: int) -> list[str]:
        """End one after the other; return the owners of those submitted instead."""
        owners = []
        for _ in range(count):
            ended = self.running[0]
            self.end(ended)
            row_id = self.submit(ended)
            assert row_id is not None
            owners.append(self.owner(row_id))
        return owners

    def owner(self, row_id: UUID) -> str:
        return str(self.at.one("SELECT owner FROM predictions WHERE id = %s", row_id))


def full(queue: Queue, owner: str, count: int) -> None:
    """Have so many predictions of an owner wait, and all places taken."""
    (first, *_) = queue.plan(owner, count)
    while queue.submit(first):
        pass


@pytest.mark.parametrize("count", [1_000, 10_000])
def test_a_few_of_one_owner_do_not_wait_behind_all_of_another(at: World, count: int) -> None:
    """1,000 pictures of a batch must not be drawn before the one that somebody looks at."""
    queue = Queue(at, {"replicate": 10})
    full(queue, "ann", count)
    queue.plan("bob", 20)

    assert queue.serve(45).count("bob") == 20


def test_each_of_fifty_owners_is_served_within_a_round(at: World) -> None:
    """10,000 wait; an owner who comes last is not the last."""
    queue = Queue(at, {"replicate": 2})
    for n in range(50):
        queue.plan(f"o{n:02}", 200)
    full(queue, "o07", 1)
    queue.plan("last")
    queue.plan("a first")

    served = queue.serve(52)

    assert Counter(served) == {**{f"o{n:02}": 1 for n in range(50)}, "last": 1, "a first": 1}


def test_an_owner_is_served_in_the_order_of_arrival(at: World) -> None:
    queue = Queue(at, {"replicate": 1})
    first, *others = queue.plan("ann", 4)

    assert queue.submit(others[-1]) == first
    queue.end(first)
    assert queue.submit(first) == others[0]


class Draw:
    """Predictions of random owners at random providers, each submitted when its turn comes."""

    def __init__(self, at: World, seed: int) -> None:
        self.random = random.Random(seed)
        self.providers = {name: self.random.randint(1, 3) for name in ("replicate", "fal", "openai")}
        self.queue = Queue(at, {**self.providers, "fal:video": 1})
        self.owners = [f"o{n}" for n in range(self.random.randint(2, 5))]
        self.waiting: dict[UUID, tuple[str, str]] = {}  # provider and owner
        self.provider_of: dict[UUID, str] = {}
        self.bounds: dict[UUID, int] = {}  # turns that the provider may give to others meanwhile
        self.busy: Counter[str] = Counter()

    def plan(self) -> None:
        owner, provider = self.random.choice(self.owners), self.random.choice(list(self.providers))
        for row_id in self.queue.plan(owner, self.random.choice((1, 1, 5)), provider):
            before = sum(key == (provider, owner) for key in self.waiting.values())
            self.waiting[row_id] = (provider, owner)
            self.provider_of[row_id] = provider
            self.bounds[row_id] = (before + 1) * len(self.owners)

    def submit(self, named: UUID) -> None:
        row_id = self.queue.submit(named)
        if row_id is None:
            return
        provider, _ = self.waiting.pop(row_id)
        self.busy[provider] += 1
        assert self.busy[provider] <= self.providers[provider]
        del self.bounds[row_id]
        for other in (other for other, (name, _) in self.waiting.items() if name == provider):
            self.bounds[other] -= 1
            assert self.bounds[other] > 0, "an owner was not offered a place within its round"

    def end(self, row_id: UUID) -> None:
        self.busy[self.provider_of[row_id]] -= 1
        self.queue.end(row_id)
        self.submit(row_id)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            self.plan()
            self.submit(self.random.choice(list(self.waiting) or self.queue.running))
            if self.queue.running:
                self.end(self.random.choice(self.queue.running))
        while self.waiting:  # as dispatch does where nothing is running
            self.submit(self.random.choice(list(self.waiting)))
            self.end(self.queue.running[0])
        self.queue.at.conn.execute("DELETE FROM predictions")


def run_draws(at: World, steps: int) -> None:
    for seed in range(30):
        Draw(at, seed).run(steps)


@pytest.mark.parametrize("steps", [3, pytest.param(60, marks=pytest.mark.prove)])
def test_everyone_is_offered_a_place_within_bounded_rounds(at: World, steps: int) -> None:
    """Whatever comes in whatever order, a row waits at most as many rounds as its owner has older ones."""
    run_draws(at, steps)


def test_the_same_fails_without_turns(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above shows that owners take turns, and not only that all are served at last."""
    without = submission_turns.CLAIM.replace(submission_turns.LAST_SERVED, "NULL::text")
    monkeypatch.setattr(submission_turns, "CLAIM", without)

    with pytest.raises(AssertionError, match="within its round"):
        run_draws(at, 6)


def test_a_model_with_its_own_limit_waits_and_lets_others_pass(at: World) -> None:
    """Two slow videos must not take every place, nor block those behind them."""
    queue = Queue(at)  # replicate=3, of Kling 1
    slow = queue.plan("ann", 5, model="kwaivgi/KLING-v2.1")
    quick = queue.plan("bob", 3, model="acme/pictures")

    taken = [queue.submit(slow[-1]) for _ in range(4)]
    queue.end(slow[0])

    assert taken == [slow[0], quick[0], quick[1], None]
    assert queue.submit(slow[0]) == slow[1]


def test_a_locked_or_leased_row_is_passed_over(at: World) -> None:
    queue = Queue(at)
    first, second = queue.plan("ann", 2)
    with at.beside() as other, other.database.transaction() as conn:
        conn.execute("SELECT FROM predictions WHERE id = %s FOR UPDATE", (first,))

        assert queue.submit(first) == second


def test_parallel_claims_take_no_place_twice(at: World) -> None:
    """Each counts what the others have taken."""
    queue = Queue(at)
    first, *_ = queue.plan("ann", 40)

    def submit_all() -> None:
        with at.beside() as deps:
            who = {"leased_by": LEASED_BY, "lease_seconds": 30.0, "max_crashes": 5}
            for _ in range(4):
                submission_turns.claim(deps.database, first, deps.settings, passed_on=(), **who)

    together(*[submit_all] * 8)

    assert at.one("SELECT count(*) FROM predictions WHERE lease_token IS NOT NULL") == 3


def test_a_paused_provider_gets_nothing(at: World) -> None:
    queue = Queue(at)
    (row_id,) = queue.plan("ann")
    at.conn.execute("INSERT INTO pauses (target, paused_by) VALUES ('replicate', 'ann')")
    try:
        assert queue.submit(row_id) is None
        assert dispatched(at) == []
    finally:
        at.conn.execute("DELETE FROM pauses")


# --- wakes


def dispatched(at: World, depth: int = 1, *, long_after: bool = False) -> list[Wake]:
    """Return what dispatch wakes: a moment after the last time however busy the machine is, or so long after."""
    sent: list[Wake] = []
    if not long_after:
        at.conn.execute("UPDATE predictions SET woken_at = moment() WHERE woken_at IS NOT NULL")
    dispatch.dispatch_due(at.deps, lambda _queue: depth, lambda wakes: sent.extend(wakes) or len(wakes))
    return sent


def test_dispatch_fills_each_provider_with_what_it_has_room_for(at: World) -> None:
    """What waits for a full provider takes no wake from another one."""
    queue = Queue(at)
    full(queue, "ann", 100)
    others = queue.plan("bob", 14, provider="fal")

    assert dispatched(at) == [Wake("submit", row_id) for row_id in others[:10]]
    assert dispatched(at) == []  # woken a moment ago
    queue.end(queue.running[0])
    assert len(dispatched(at)) == 1


def test_a_wake_that_finds_no_place_can_be_sent_again(at: World) -> None:
    """The place was taken meanwhile; when the next is free, half a minute would be lost."""
    queue = Queue(at)
    rows = queue.plan("ann", 4)
    assert len(dispatched(at)) == 3
    for _ in range(3):
        queue.submit(rows[-1])
    queue.end(queue.running[0])
    (wake,) = dispatched(at)
    queue.submit(rows[-1])
    assert queue.submit(wake.row_id) is None
    queue.plan("ann")

    queue.end(queue.running[0])
    assert len(dispatched(at)) == 1


def test_a_wake_that_was_not_published_is_sent_again_soon(at: World) -> None:
    """A full queue takes no more: places would be free for half a minute, with predictions waiting for them."""
    Queue(at).plan("ann", 2)
    dispatched(at)

    with at.later("3 seconds") as then:
        assert len(dispatched(then, long_after=True)) == 2


def test_job_requests_send_no_more_wakes_than_there_are_places(at: World) -> None:
    """A thousand would stand in the queue before the wakes of another provider."""
    assert sum(len(ordered(at).wakes) for _ in range(12)) == 3


def test_the_end_of_a_prediction_wakes_the_next_one(at: World) -> None:
    """Not a second later: a provider that is full all day would stand idle for a part of it."""
    first, *_ = [ordered(at).wakes for _ in range(5)]
    for _ in range(3):
        at.step("submit", first[0].row_id)
    running = at.conn.execute("SELECT external_id FROM predictions WHERE state = 'running' ORDER BY id").fetchall()

    wakes = at.step("ingest", at.delivered(prediction(running[0]["external_id"], "succeeded", [at.studio.picture()])))
    failed = at.step("ingest", at.delivered(prediction(running[1]["external_id"], "failed")))

    assert Counter(wake.step for wake in wakes + failed) == {"keep": 1, "submit": 2}


def test_an_input_is_resolved_after_a_place_was_taken(at: World) -> None:
    """What is deleted while its job waits fails when it is submitted, and costs the queue nothing before."""
    queue = Queue(at)
    full(queue, "zoe", 5)
    made = ordered(at, entry(image={"upload": str(uuid4())}))

    at.step("submit", made.prediction_id)
    assert at.state("predictions", made.prediction_id) == "planned"

    queue.end(queue.running[0])
    at.step("submit", made.prediction_id)
    assert at.state("predictions", made.prediction_id) == "failed"


# --- what is due


def oldest(conn: Connection) -> float:
    rows = conn.execute(metrics.OLDEST_DUE_BY_TABLE["predictions"]).fetchall()
    return float(rows[0]["value"])


def test_what_only_waits_for_a_place_is_not_due(at: World) -> None:
    """An alert on a full provider would be switched off, and stay off."""
    queue = Queue(at)
    queue.plan("ann", 5)
    before = oldest(at.conn)
    queue.submit(queue.plan("ann")[0])

    assert before == pytest.approx(3600, abs=60)
    assert oldest(at.conn) == 0

    queue.end(queue.running[0])
    assert oldest(at.conn) < 60  # since the last place was taken


def test_the_choice_is_flat_in_the_number_of_planned_rows(at: World) -> None:
    """Each submission would cost more the more of them wait."""
    queue = Queue(at, {"replicate": 10})
    for n in range(50):
        queue.plan(f"o{n}", 200)
    at.conn.execute("ANALYZE predictions")
    limits = submission_turns.build_limits(queue.at.deps.settings, ["replicate"])
    who = {"leased_by": LEASED_BY, "lease_seconds": 30, "max_crashes": 5, "id": uuid4(), "token": uuid4()}
    for sql in (submission_turns.CLAIM, submission_turns.WAKE):
        text = f"EXPLAIN (ANALYZE, BUFFERS) {sql}"
        query = at.conn.queue(text, {**limits, **who, "limit": 16, "queue_is_empty": False})
        plan = "\n".join(row["QUERY PLAN"] for row in query.rows)
        assert not re.findall(r"Seq Scan on (?!cursors|pauses|breakers)", plan)
        assert int(plan.split("Buffers: shared hit=")[1].split()[0]) < 300, plan


# --- limits of owners


def test_an_owner_with_all_its_places_taken_waits_at_every_provider(at: World) -> None:
    """Its limit is over all providers, and the places it leaves are for others."""
    limited = at.changed(in_flight={"replicate": 5, "fal": 5}, owner_limits={"in_flight": 2})
    queue = Queue(limited)
    mine = queue.plan("ann", 3) + queue.plan("ann", 3, provider="fal")
    theirs = queue.plan("bob", 1, provider="fal")

    assert [queue.submit(mine[0]), queue.submit(mine[3]), queue.submit(mine[0])] == [mine[0], mine[3], None]
    assert queue.submit(mine[4]) == theirs[0]
    queue.end(mine[0])
    assert queue.submit(mine[4]) == mine[4]


def test_parallel_claims_at_two_providers_take_no_place_of_an_owner_twice(at: World) -> None:
    """Each provider has a lock of its own without such a limit."""
    limited = at.changed(in_flight={"replicate": 20, "fal": 20}, owner_limits={"in_flight": 3})
    queue = Queue(limited)
    rows = [*queue.plan("ann", 20), *queue.plan("ann", 20, provider="fal")]

    def submit_all(row_id: UUID) -> None:
        with at.beside() as deps:
            who = {"leased_by": LEASED_BY, "lease_seconds": 30.0, "max_crashes": 5}
            for _ in range(4):
                submission_turns.claim(deps.database, row_id, limited.deps.settings, passed_on=(), **who)

    together(*[partial(submit_all, row_id) for row_id in (rows[0], rows[-1]) * 4])

    assert at.one("SELECT count(*) FROM predictions WHERE lease_token IS NOT NULL") == 3


def test_a_provider_without_its_settings_is_woken_and_fails(at: World) -> None:
    """Its predictions waited for ever after its key was removed, and their jobs never went on to another provider."""
    queue = Queue(at)
    rows = queue.plan("ann", 2, provider="gone")

    assert dispatched(at) == [Wake("submit", rows[0])]
    assert queue.submit(rows[0]) == rows[0]


def test_many_providers_leave_room_for_the_other_steps(at: World) -> None:
    """Each took a quarter of the queue's room: with four of them no webhook was ingested by dispatch."""
    queue = Queue(at)
    for n in range(9):
        queue.plan("ann", provider=f"gone{n}")

    sent = [dispatched(at, depth=60) for _ in range(9)]

    assert [len(wakes) for wakes in sent] == [1] * 9
    assert len({wake.row_id for wakes in sent for wake in wakes}) == 9
