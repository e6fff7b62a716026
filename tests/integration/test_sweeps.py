"""Sweeps: dispatch, reconcile and discard, by any number of workers at once."""

from collections.abc import Iterator
from typing import Any

import pytest

from db import leases, ticks
from db.connection import Connection
from db.reports.status import read_overview
from embedded.stack import Stack
from moorage import ids
from moorage.model import Job, Wake
from tasks.sweeps import dispatch, reconcile
from tests.integration.core import World, database_of, prediction, together, wait_until, world
from worker import status


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "sweeps")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


class Broker:
    """Counts what is sent; the depths are as told."""

    def __init__(self, quick: int | None = 0, keep: int | None = 0) -> None:
        self.depths = {"quick": quick, "keep": keep}
        self.sent: list[Wake] = []

    def send(self, wakes: list[Wake]) -> int:
        self.sent += wakes
        return len(wakes)


def run_dispatch(at: World, broker: Broker) -> list[Wake]:
    broker.sent.clear()
    dispatch.dispatch_due(at.deps, broker.depths.__getitem__, broker.send)
    return list(broker.sent)


def waiting(at: World, count: int) -> list:
    """Return outputs that are due, and whose wakes nobody published."""
    made = at.keeping([at.source.url(f"/never/{n}") for n in range(count)])
    at.conn.execute("UPDATE outputs SET woken_at = NULL")
    return at.outputs(made.job_id)


def test_dispatch_wakes_the_soonest_to_expire_up_to_the_depth(at: World) -> None:
    """A file whose URL dies in a minute goes before one that lives an hour."""
    outputs = waiting(at, 10)
    for number, output_id in enumerate(outputs):
        sql = "UPDATE outputs SET expires_at = moment() + make_interval(mins => %s) WHERE id = %s"
        at.conn.execute(sql, (60 - number, output_id))

    sent = run_dispatch(at.changed({"queue_depth": 6}), Broker(keep=2))

    assert [wake.step for wake in sent] == ["keep"] * 4
    assert {wake.row_id for wake in sent} == set(outputs[-4:])


def test_no_row_is_woken_twice_within_half_a_minute(at: World) -> None:
    """A long queue must not grow by the same rows each second."""
    waiting(at, 3)

    assert len(run_dispatch(at, Broker(keep=1))) == 3
    assert run_dispatch(at, Broker(keep=4)) == []
    with at.later("31 seconds") as then:
        assert len(run_dispatch(then, Broker(keep=4))) == 3


def test_an_emptied_queue_costs_one_tick(at: World) -> None:
    """FLUSHALL: the rows are the queue, so they are woken again at once."""
    waiting(at, 3)
    assert len(run_dispatch(at, Broker(keep=0))) == 3

    assert len(run_dispatch(at, Broker(keep=0))) == 3


def test_wakes_that_a_full_queue_left_to_dispatch_are_sent_as_it_drains(at: World) -> None:
    """Their rows are marked as woken: with 126 of 190 such rows, dispatch sent nothing until the queue was empty."""
    at.conn.execute("UPDATE outputs SET woken_at = moment() WHERE id = ANY (%s)", (waiting(at, 190),))

    assert [len(run_dispatch(at, Broker(keep=depth))) for depth in (64, 40, 63)] == [0, 24, 1]


class Workers(Broker):
    """A broker whose queue is empty at each look: workers have claimed what was sent."""

    def __init__(self, at: World) -> None:
        super().__init__()
        self.at, self.looks, self.most = at, 0, 0

    def depth(self, _queue: str) -> int:
        sql = "UPDATE outputs SET run_at = moment() + interval '1 h' WHERE id = ANY (%s)"
        self.at.conn.execute(sql, ([wake.row_id for wake in self.sent[-64:]],))
        self.looks += 1
        return 0

    def send(self, wakes: list[Wake]) -> int:
        self.most = max(self.most, len(wakes))
        return super().send(wakes)


def test_a_backlog_is_sent_at_the_speed_of_the_workers(at: World) -> None:
    """One look a tick is 64 files a second, however many workers there are."""
    outputs, broker = waiting(at, 200), Workers(at)

    sent = dispatch.dispatch_due(at.deps, broker.depth, broker.send, ["keep"], seconds=600)

    assert (sent["keep"], broker.most, broker.looks) == (200, 64, 4)
    assert {wake.row_id for wake in broker.sent} == set(outputs)


def test_a_queue_that_does_not_drain_ends_a_tick(at: World) -> None:
    """The next tick and the other sweeps must run."""
    waiting(at, 3)
    times = iter((0.0, 0.2, 0.4, 0.6, 0.8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dispatch.time, "monotonic", lambda: next(times))
        assert dispatch.dispatch_due(at.deps, lambda _queue: 64, len, ["keep"], seconds=0.7) == {"keep": 0}


def test_a_full_queue_gets_nothing(at: World) -> None:
    """The broker never holds more than it must."""
    waiting(at, 3)

    assert run_dispatch(at, Broker(keep=64)) == []


def test_a_broker_that_is_away_marks_no_row(at: World) -> None:
    """Else they would sleep for half a minute after it came back."""
    waiting(at, 3)
    run_dispatch(at, Broker(quick=None))

    assert len(run_dispatch(at, Broker(keep=1))) == 3


def test_a_flood_of_webhooks_does_not_starve_the_polls(at: World) -> None:
    """A lost webhook is only found by its poll."""
    made = at.registered("p1")
    at.conn.execute("UPDATE predictions SET run_at = moment()")
    for _ in range(20):
        at.delivered(prediction("p2", "processing"))

    sent = run_dispatch(at.changed({"queue_depth": 8}), Broker())

    assert len(sent) == 8
    assert Wake("poll", made.prediction_id) in sent


def test_a_leased_row_is_not_woken(at: World) -> None:
    """Somebody works on it."""
    first, second = waiting(at, 2)
    at.claimed_output(first)

    assert [wake.row_id for wake in run_dispatch(at, Broker())] == [second]


def discarding(at: World):
    made = at.keeping([at.source.picture(), at.source.broken()], partial="discard")
    at.keep_all(made.job_id)
    return at.outputs(made.job_id)[0]


def test_a_queue_that_stays_full_does_not_starve_discards(at: World) -> None:
    """Every wait ends."""
    first, broker = discarding(at), Broker(keep=64)

    dispatch.dispatch_discards(at.deps, broker.depths.__getitem__, broker.send)

    assert broker.sent == [Wake("discard", first)]


def test_spooled_inputs_of_settled_jobs_are_deleted(at: World) -> None:
    """A local file that was kept leaves nothing behind in the private bucket."""
    made = at.keeping([at.source.picture()])
    (output_id,) = at.outputs(made.job_id)
    key = f"inputs/{ids.uuid7()}.png"
    at.deps.storage.put(at.deps.storage.private_bucket, key, b"x", size=1, sha256=X_SHA256, content_type="image/png")
    at.step("keep", output_id)
    at.conn.execute("UPDATE outputs SET source_kind = 'object', source = %s", (key,))

    assert dispatch.dispatch_discards(at.deps, lambda _queue: 0, Broker().send)["spooled"] == 1

    assert at.deps.storage.head(at.deps.storage.private_bucket, key) is None
    assert at.row("outputs", output_id)["source"] is None


X_SHA256 = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"


def run_reconcile(at: World) -> tuple[dict, list[Wake]]:
    broker = Broker()
    return reconcile.reconcile(at.deps, "sweeper", broker.send, {"leases", "jobs", "documents"}), broker.sent


def old_enough(at: World) -> bool:
    return bool(at.one("SELECT pg_postmaster_start_time() < clock_timestamp() - interval '31 s'"))


def add_ticks(at: World, count: int) -> None:
    """Record runs of the sweep, as its schedule does every two seconds."""
    for _ in range(count):
        at.conn.execute("INSERT INTO ticks (sweep, slot) SELECT 'reconcile', count(*) FROM ticks")


def test_an_expired_lease_is_freed_with_its_crash_counted(at: World) -> None:
    """Its worker never wrote back."""
    wait_until(lambda: old_enough(at))  # before the claim: a lease is as short as this wait may be long
    (output_id,) = waiting(at, 1)
    token = str(at.claimed_output(output_id).token)
    assert run_reconcile(at)[0]["released"] == 0

    with at.later("31 seconds") as then:
        add_ticks(then, 9)
        assert run_reconcile(then)[0]["released"] == 0, "released after an outage, before it could be renewed"
        add_ticks(then, 1)
        result, sent = run_reconcile(then)

    row = at.row("outputs", output_id)
    assert (result["released"], sent) == (1, [Wake("keep", output_id)])
    assert (row["lease_token"], row["attempt"], row["crashes"]) == (None, 1, 1)
    assert at.one("SELECT lease FROM events WHERE subject_id = %s AND kind = 'lease_expired'", output_id) == token[:8]


def test_after_a_promotion_leases_get_the_same_time_as_after_a_start(at: World) -> None:
    """A promoted standby started long ago, but nobody could renew a lease since the old primary died."""
    wait_until(lambda: old_enough(at))
    (output_id,) = waiting(at, 1)
    run_reconcile(at)
    at.claimed_output(output_id)
    add_ticks(at, 10)
    at.conn.execute("UPDATE cursors SET place = '00000000' WHERE sweep = 'timeline'")  # as on the old primary
    at.conn.execute("UPDATE outputs SET leased_until = moment() - interval '1 s'")

    at_promotion = run_reconcile(at)[0]["released"]
    again = run_reconcile(at)[0]["released"]
    at.conn.execute("UPDATE cursors SET moved_at = clock_timestamp() - interval '31 s' WHERE sweep = 'timeline'")
    later = run_reconcile(at)[0]["released"]

    assert (at_promotion, again, later) == (0, 0, 1)


def test_the_leases_of_a_dead_process_are_freed_and_no_other(at: World) -> None:
    """By its own name: node and task."""
    first, second = waiting(at, 2)
    at.claim("outputs", first, ("waiting",), leased_by="a/1")
    at.claim("outputs", second, ("waiting",), leased_by="a/11")

    token = at.row("outputs", first)["lease_token"]
    freed = at.deps.database.run(lambda conn: leases.release_held_by(conn, "a/1", "killed"))

    assert freed == [("outputs", first)]
    (event,) = at.conn.execute("SELECT subject_id, lease FROM events WHERE kind = 'worker_died'").fetchall()
    assert event == {"subject_id": first, "lease": str(token)[:8]}
    assert at.row("outputs", second)["leased_by"] == "a/11"


def test_two_beats_at_once_run_a_sweep_once(at: World) -> None:
    """Any number of beats may tick."""
    taken: list[ticks.Tick | None] = []

    def tick() -> None:
        with at.beside() as deps:
            taken.append(ticks.claim_slot(deps.database, "dispatch", 1e8))  # no slot ends meanwhile

    together(*[tick] * 6)

    assert len([slot for slot in taken if slot is not None]) == 1


def test_the_two_ticks_before_of_a_daily_sweep_are_kept(at: World) -> None:
    """They show whether a sweep failed once or each time, also where two processes of beat send each slot."""
    for _ in range(4):
        at.conn.execute("UPDATE ticks SET slot = slot - 1440, started_at = started_at - interval '1 day'")
        for _ in range(2):
            ticks.claim_slot(at.deps.database, "orphans", 60.0)

    assert at.one("SELECT count(*) FROM ticks WHERE sweep = 'orphans'") == 3


def test_the_latest_tick_is_shown_after_the_period_was_made_longer(at: World) -> None:
    """A slot is time over period: with a longer one the numbers start again lower."""
    slot = ticks.claim_slot(at.deps.database, "drain", 1.0)
    longer = ticks.claim_slot(at.deps.database, "drain", 30.0)

    assert slot is not None
    assert longer is not None
    assert [row["slot"] for row in ticks.list_latest(at.conn)] == [longer.slot]


def test_sweeps_that_fail_each_time_are_told(at: World) -> None:
    """Their ticks are never late, and say "ok"; one that still runs, or failed before its last success, does not."""
    for name, seconds, is_finished in (
        *(("dispatch", 5 * n, False) for n in range(1, 19)),
        *(("drain", 1, False), ("drain", 30, False), ("drain", 60, True), ("drain", 1200, False)),
        *(("discard", 1, True), ("discard", 700, False), ("orphans", 660, False), ("retention", 540, False)),
        ("usage", -3000, False),
    ):
        at.conn.execute(
            "INSERT INTO ticks (sweep, slot, started_at, finished_at) SELECT %s, %s, at, CASE WHEN %s THEN at END"
            " FROM (SELECT moment() - make_interval(secs => %s) AS at) t",
            (name, -seconds, is_finished, seconds),
        )

    overview = at.deps.database.run(lambda conn: read_overview(conn, []))

    sweeps = status._list_sweeps(overview, at.deps.settings)
    assert {sweep["sweep"] for sweep in sweeps if sweep["is_failed"]} == {"dispatch", "orphans"}


def test_an_open_job_past_its_deadline_polls_what_it_awaits(at: World) -> None:
    """And fails when it awaits nothing."""
    made, bare = at.registered("p1"), at.registered("p2")
    at.conn.execute("DELETE FROM predictions WHERE id = %s", (bare.prediction_id,))
    at.conn.execute("UPDATE predictions SET run_at = moment() + '3 hours', deadline_at = moment() + '3 hours'")

    with at.later("61 minutes") as then:
        _, sent = run_reconcile(then)

    assert sent == [Wake("poll", made.prediction_id)]
    assert at.state("jobs", made.job_id) == "open"
    assert at.row("jobs", bare.job_id)["category"] == "TIMED_OUT"


def test_a_keeping_job_whose_settling_was_missed_is_counted_again(at: World) -> None:
    """Nothing waits without a time at which a sweep finds it."""
    made = at.keeping([at.source.broken()])
    (output_id,) = at.outputs(made.job_id)
    dead = "UPDATE outputs SET state = 'dead', category = 'INTERNAL', run_at = NULL, ended_at = moment() WHERE id = %s"
    at.conn.execute(dead, (output_id,))

    with at.later("6 minutes") as then:
        run_reconcile(then)

    assert at.state("jobs", made.job_id) == "failed"


@pytest.fixture
def refusing(at: World) -> Iterator[Connection]:
    """Give a connection after PostgreSQL was told to refuse one project's rows."""
    at.conn.execute("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$;
        CREATE TRIGGER refuse BEFORE UPDATE ON projects FOR EACH ROW WHEN (old.id = 'bad') EXECUTE FUNCTION refuse()
    """)
    yield at.conn
    at.conn.execute("DROP TRIGGER refuse ON projects; DROP FUNCTION refuse()")


def test_a_row_that_postgresql_refuses_does_not_keep_others_waiting(at: World, refusing: Connection) -> None:
    """One broken document must not stop the sweep for all."""
    for name in ("bad", "good"):
        document = '{"scenes": [{"imageUrls": ["stale"]}]}'
        at.conn.execute("INSERT INTO projects (id, owner, document) VALUES (%s, 'ann', %s::jsonb)", (name, document))

    run_reconcile(at)

    assert at.one("SELECT document #>> '{scenes,0,imageUrls}' FROM projects WHERE id = 'good'") == "[]"


def test_an_error_of_one_row_does_not_keep_others_waiting(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is: a bug that concerns one job must not end the deadlines of all."""
    bad, good = at.registered("p1"), at.registered("p2")
    at.conn.execute("DELETE FROM predictions")
    advance = reconcile.fallback.advance

    def fail_for_one(conn: Connection, job: Job, *args: Any, **kwargs: Any) -> list[Wake]:
        if job.id == bad.job_id:
            raise AttributeError("'NoneType' object has no attribute 'replace'")
        return advance(conn, job, *args, **kwargs)

    monkeypatch.setattr(reconcile.fallback, "advance", fail_for_one)
    with at.later("61 minutes") as then:
        for _ in range(2):
            run_reconcile(then)

    assert (at.state("jobs", bad.job_id), at.state("jobs", good.job_id)) == ("open", "failed")


def test_jobs_whose_check_fails_do_not_stop_the_deadlines_of_others(at: World) -> None:
    """A hundred of them were the page of jobs that are due, at every run."""
    for _ in range(100):
        at.registered()
    at.conn.execute("UPDATE jobs SET fallback_chain = '[{}]', run_at = moment() - interval '1 h'")
    at.conn.execute("UPDATE predictions SET run_at = NULL, state = 'lost', ended_at = moment(), ended_by = 'us'")
    good = at.registered()
    at.conn.execute(
        "UPDATE predictions SET state = 'lost', run_at = NULL, ended_at = moment() WHERE run_at IS NOT NULL"
    )
    at.conn.execute("UPDATE jobs SET run_at = moment() WHERE id = %s", (good.job_id,))

    for _ in range(2):
        reconcile.reconcile(at.deps, "test", len, {"jobs"})

    assert at.state("jobs", good.job_id) == "failed"
    assert at.one("SELECT count(*) FROM jobs WHERE state = 'open' AND run_at > moment()") == 100
