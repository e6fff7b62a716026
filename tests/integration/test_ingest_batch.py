"""Several deliveries in one task and one transaction: each ends as it would alone."""

import re
from collections.abc import Iterator
from itertools import count
from typing import Any
from uuid import UUID

import pytest

from db import deliveries, leases, output_claims
from db.connection import Connection, connect
from embedded.stack import Stack
from moorage.errors import DatabaseUnavailable
from moorage.model import Lease, Wake
from tests.integration.core import LEASED_BY, World, database_of, prediction, wait_until, world
from tests.integration.studio import crash
from worker import boot, publish, step_runner


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "ingest_batch")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


@pytest.fixture
def sent(at: World, monkeypatch: pytest.MonkeyPatch) -> list[list[Wake]]:
    """Collect what tasks publish, batch by batch."""
    batches: list[list[Wake]] = []
    monkeypatch.setattr(boot, "get_deps", lambda: at.deps)
    monkeypatch.setattr(publish, "publish_wakes", batches.append)
    monkeypatch.setattr(step_runner, "BATCH_SECONDS", 60.0)  # the machine may be slow
    return batches


def succeeded(at: World, name: str, **changes: Any) -> UUID:
    return at.delivered(prediction(name, "succeeded", [at.source.url(f"/{name}.png")], **changes))


def states(at: World, delivery_ids: list[UUID]) -> list[str]:
    return [at.state("deliveries", delivery_id) for delivery_id in delivery_ids]


def claimed(delivery_id: UUID) -> int:
    """Run a task and return how many rows it claimed."""
    return sum(outcome.task_id != "" for outcome in step_runner.run_step("ingest", delivery_id, LEASED_BY))


def test_one_task_applies_all_that_is_due(at: World, sent: list[list[Wake]]) -> None:
    """A burst must not cost a task and seven round trips for each webhook."""
    jobs = [at.registered(f"p{n}") for n in range(150)]
    ids = [succeeded(at, f"p{n}") for n in range(150)]

    counts = [claimed(delivery_id) for delivery_id in (ids[100], ids[0])]

    assert counts == [150, 0]
    assert set(states(at, ids)) == {"applied"}
    assert [len(wakes) for wakes in sent] == [64, 64, 22]
    assert {wake.row_id for wakes in sent for wake in wakes} == {at.outputs(job.job_id)[0] for job in jobs}
    assert at.one("SELECT count(*) FROM outputs WHERE woken_at IS NULL OR state <> 'waiting'") == 0
    assert at.one("SELECT count(*) FROM deliveries WHERE attempt <> 1 OR crashes <> 0") == 0


def test_a_task_whose_second_is_over_wakes_another(
    at: World, sent: list[list[Wake]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polls and notifications wait in the same queue."""
    monkeypatch.setattr(step_runner, "BATCH_SECONDS", 0.0)
    for n in range(70):
        at.registered(f"p{n}")
    ids = [succeeded(at, f"p{n}") for n in range(70)]

    assert claimed(ids[0]) == 64

    assert [wake for wake in sent[0] if wake.step == "ingest"] == [Wake("ingest", ids[0])]
    assert claimed(ids[0]) == 6


def test_a_batch_has_the_events_of_each_delivery_alone(at: World, sent: list[list[Wake]]) -> None:
    """The history of a row does not tell how many were processed with it."""
    ended = []
    for size in (1, 3):
        names = [f"{size}-{n}" for n in range(size)]
        jobs, ids = [at.registered(name) for name in names], [succeeded(at, name) for name in names]
        step_runner.run_step("ingest", ids[0], LEASED_BY)
        sql = "SELECT subject, from_state, to_state, kind, replace(reason, %s, '') AS reason FROM events"
        by_id = f"{sql} WHERE job_id = %s OR subject_id = %s ORDER BY id"
        ended += [
            at.conn.execute(by_id, (name, job.job_id, id_)).fetchall()
            for name, job, id_ in zip(names, jobs, ids, strict=True)
        ]

    assert ended[1:] == [ended[0]] * 3
    assert len(sent) == 2


def test_each_delivery_of_a_batch_ends_as_it_would_alone(at: World, sent: list[list[Wake]]) -> None:
    """One bad, one locked, one doubled, one of a cancelled job among good ones: nothing spoils the others."""
    made = {name: at.registered(name) for name in ("good", "twin", "locked", "cancelled", "other")}
    at.conn.execute(
        "UPDATE jobs SET state = 'cancelled', run_at = NULL, settled_at = moment() WHERE id = %s",
        (made["cancelled"].job_id,),
    )
    bad, stray = at.delivered(b"not json"), succeeded(at, "stranger")
    ids = {name: succeeded(at, name) for name in ("good", "twin", "locked", "cancelled", "other")}
    second = succeeded(at, "twin")
    other = connect(at.database_url)
    with other.transaction():
        other.execute("SELECT id FROM jobs WHERE id = %s FOR UPDATE", (made["locked"].job_id,))

        outcomes = step_runner.run_step("ingest", ids["good"], LEASED_BY)

    other.close()
    shown = {UUID(outcome.row_id): outcome.state for outcome in outcomes}
    assert shown == {
        **dict.fromkeys([*ids.values(), second], "done"),
        bad: "dead",
        stray: "retry",
        ids["locked"]: "retry",
    }
    assert states(at, [ids["good"], ids["twin"], ids["other"]]) == ["applied"] * 3
    assert at.state("deliveries", second) == "ignored"
    assert "duplicate" in at.row("deliveries", second)["reason"]
    assert (at.state("deliveries", bad), len(at.letters(bad))) == ("dead", 1)
    assert at.state("deliveries", stray) == "unmatched"
    assert "late" in at.row("deliveries", ids["cancelled"])["reason"]
    locked = at.row("deliveries", ids["locked"])
    assert (locked["state"], locked["attempt"], locked["crashes"], locked["lease_token"]) == ("new", 0, 0, None)
    assert "locked by another transaction" in locked["reason"]


def test_the_outcomes_of_a_step(at: World, sent: list[list[Wake]]) -> None:
    """They name the claimed row, which may be more urgent than the named one, and say why none was."""
    urgent, gone, poison, never = at.outputs(
        at.keeping([at.source.picture(), at.source.broken(), at.source.picture(1), at.source.broken(503)]).job_id
    )
    for number, output_id in enumerate((urgent, gone, never)):
        at.conn.execute("UPDATE outputs SET expires_at = '2100-01-01'::date + %s WHERE id = %s", (number, output_id))
    at.conn.execute("UPDATE outputs SET crashes = 5 WHERE id = %s", (poison,))
    idx = {output_id: at.row("outputs", output_id)["idx"] for output_id in (urgent, gone, poison, never)}

    shown = [step_runner.run_step("keep", wake, LEASED_BY) for wake in (gone, urgent, never)]
    at.conn.execute("UPDATE outputs SET run_at = moment() + interval '1 day' WHERE id = %s", (never,))
    shown += [step_runner.run_step("keep", wake, LEASED_BY) for wake in (never, poison)]

    ((kept,), (dead,), (retry,), (empty,), (poisoned,)) = shown
    assert [UUID(o.row_id) for (o,) in shown] == [urgent, gone, never, never, poison]
    assert [o.state for (o,) in shown] == ["done", "dead", "retry", "done", "dead"]
    assert re.search(rf"^keep output {idx[urgent]} of job [0-9a-f-]{{18}}: kept png \d+ \w+ in ", kept.text)
    assert re.search(rf"^keep output {idx[gone]} of job [0-9a-f-]{{18}}: DOWNLOAD_FAILED: .*404", dead.text)
    assert re.search(r"DOWNLOAD_FAILED: .*503.*; next attempt at \d\d:\d\d:\d\d$", retry.text)
    assert empty.text == "keep: nothing to claim"
    assert poisoned.text.endswith("POISON: 5 workers died while processing this row")


def test_a_trace_is_in_the_log_of_its_ingest(
    at: World, sent: list[list[Wake]], caplog: pytest.LogCaptureFixture
) -> None:
    """The sender of the webhook finds what became of it."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    delivery_id = at.delivered(b"not json")
    at.conn.execute("UPDATE deliveries SET headers = jsonb_build_object('traceparent', %s::text)", (trace,))

    step_runner.run_step("ingest", delivery_id, LEASED_BY)

    assert {r.msg: r.fields.get("traceparent") for r in caplog.records if r.levelname == "ERROR"} == {
        "step.dead_letter": trace
    }


def test_deliveries_about_one_prediction_are_applied_in_order(at: World, sent: list[list[Wake]]) -> None:
    """What a later one finds is what an earlier one of the same transaction has made."""
    at.registered("p1")
    bodies = [prediction("p1", "starting"), prediction("p1", "succeeded", [at.source.url("/a.png")])]
    ids = [at.delivered(body) for body in (*bodies, prediction("p1", "processing"), bodies[1])]

    step_runner.run_step("ingest", ids[3], LEASED_BY)

    assert [at.row("deliveries", id_)["reason"] for id_ in ids] == [
        "still starting",
        "chosen: 1 file",
        "backwards: processing after succeeded",
        "duplicate: the prediction had succeeded",
    ]


def test_an_error_in_a_batch_has_each_applied_alone(
    at: World, sent: list[list[Wake]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that PostgreSQL refuses fails alone, and only its own error is counted."""
    for name in ("a", "b", "c"):
        at.registered(name)
    ids = [succeeded(at, name) for name in ("a", "b", "c")]
    at.conn.execute("ALTER TABLE outputs ADD CONSTRAINT refused CHECK (source NOT LIKE '%/b.png')")
    try:
        step_runner.run_step("ingest", ids[0], LEASED_BY)
    finally:
        at.conn.execute("ALTER TABLE outputs DROP CONSTRAINT refused")

    assert states(at, ids) == ["applied", "new", "applied"]
    assert [at.row("deliveries", id_)["crashes"] for id_ in ids] == [0, 0, 0]
    assert [at.row("deliveries", id_)["attempt"] for id_ in ids[::2]] == [1, 1]
    assert "CheckViolation" in at.row("deliveries", ids[1])["reason"]


def test_a_batch_is_bounded_by_bytes(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies of 16 MiB are legal: 64 of them would be a gigabyte."""
    monkeypatch.setattr(deliveries, "MAX_BATCH_BYTES", 2500)
    ids = [at.delivered(b"x" * size) for size in (10, 1000, 1000, 1000, 5000)]
    limits = {"leased_by": LEASED_BY, "lease_seconds": 30.0, "max_crashes": 5, "max_rows": 64}

    claimed = [{lease.row_id for lease in deliveries.claim_due(at.deps.database, ids[0], **limits)} for _ in range(4)]

    assert claimed == [{*ids[:3]}, {ids[3]}, {ids[4]}, set()]


def test_a_poisonous_delivery_ends_while_others_are_due(
    at: World, sent: list[list[Wake]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not wait for an hour without other webhooks."""
    monkeypatch.setattr(step_runner, "BATCH_SECONDS", 0.0)  # as long as others are always due
    for name in ("a", "b", "c"):
        at.registered(name)
    ids = [succeeded(at, name) for name in ("a", "b", "c")]
    at.conn.execute("UPDATE deliveries SET crashes = 5 WHERE id = %s", (ids[0],))

    outcomes = step_runner.run_step("ingest", ids[0], LEASED_BY)

    assert states(at, ids) == ["dead", "applied", "applied"]
    assert [outcome.state for outcome in outcomes if outcome.row_id == str(ids[0])] == ["dead"]


def test_rows_that_cannot_be_handed_back_during_an_outage_are_handed_back_after_it(
    at: World, sent: list[list[Wake]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else their leases would expire, which counts a crash against rows that nothing was done with."""
    for name in ("a", "b", "c"):
        at.registered(name)
    ids = [succeeded(at, name) for name in ("a", "b", "c")]
    hand_back, calls = leases.hand_back, count()

    def hand_back_later(conn: Connection, lease: Lease, error: Any) -> None:
        if next(calls) < 3:
            raise DatabaseUnavailable("the server is shutting down")
        hand_back(conn, lease, error)

    monkeypatch.setattr(leases, "hand_back", hand_back_later)
    monkeypatch.setattr(step_runner, "_run_batch", lambda _deps, leased: ([], leased))
    monkeypatch.setattr(step_runner, "BATCH_SECONDS", 0.0)  # over before the first of them

    outcomes = step_runner.run_step("ingest", ids[0], LEASED_BY)

    assert len(outcomes) == 3
    wait_until(lambda: at.one("SELECT count(*) FROM deliveries WHERE lease_token IS NOT NULL") == 0)
    assert at.one("SELECT count(*) FROM deliveries WHERE state = 'new' AND attempt = 0 AND crashes = 0") == 3


def test_the_result_of_a_file_does_not_wait_for_the_locked_job_of_a_poisonous_one(
    at: World, sent: list[list[Wake]]
) -> None:
    """The wakes of what was stored are published, and its outcome is shown."""
    good, poison = (at.keeping([at.source.picture(n)]) for n in range(2))
    ((first,), (second,)) = (at.outputs(job.job_id) for job in (good, poison))
    at.conn.execute("UPDATE outputs SET crashes = 5 WHERE id = %s", (second,))
    other = connect(at.database_url)
    with other.transaction():
        other.execute("SELECT id FROM jobs WHERE id = %s FOR UPDATE", (poison.job_id,))

        outcomes = step_runner.run_step("keep", second, LEASED_BY)

    other.close()
    assert [(outcome.row_id, outcome.state) for outcome in outcomes] == [(str(first), "done")]
    assert (at.state("outputs", first), at.state("outputs", second)) == ("kept", "waiting")
    (poisoned,) = step_runner.run_step("keep", second, LEASED_BY)
    assert (poisoned.state, at.state("outputs", second)) == ("dead", "dead")


# --- crashes --------------------------------------------------------------------------------------------------------


@pytest.fixture
def environment(at: World, stack: Stack, url: str) -> dict[str, str]:
    hosts = {"REPLICATE_OUTPUT_HOSTS": "127.0.0.1", "MOORAGE_EGRESS_ALLOW": f"127.0.0.1:{at.source.port}"}
    return {**stack.environment(), **hosts, "DATABASE_URL": url, "MOORAGE_DEV_MAX_CRASHES": "2"}


@pytest.mark.parametrize("point", ["ingest.after_claim", "ingest.before_commit"])
def test_a_crash_before_the_commit_is_counted_against_all(
    at: World, sent: list[list[Wake]], environment: dict[str, str], point: str
) -> None:
    """Which of them it was is not known; then each is processed alone, and none is claimed with it."""
    for name in ("a", "b", "c"):
        at.registered(name)
    ids = [succeeded(at, name) for name in ("a", "b", "c")]

    crash(at, "ingest", ids[1], point, environment)
    assert {at.row("deliveries", id_)["crashes"] for id_ in ids} == {1}
    fresh = at.delivered(prediction("a", "processing"))
    counts = [claimed(id_) for id_ in ids]

    assert counts == [1, 1, 1]
    assert states(at, [*ids, fresh]) == ["applied"] * 3 + ["new"]


def test_a_crash_after_the_commit_loses_only_the_wakes(
    at: World, sent: list[list[Wake]], environment: dict[str, str]
) -> None:
    """Dispatch wakes the outputs: at once if the queue is empty, else after 30 s."""
    jobs = [at.registered(name) for name in ("a", "b")]
    ids = [succeeded(at, name) for name in ("a", "b")]

    crash(at, "ingest", ids[0], "ingest.after_commit", environment)

    assert states(at, ids) == ["applied"] * 2
    assert {at.row("deliveries", id_)["crashes"] for id_ in ids} == {0}
    waiting = {at.outputs(job.job_id)[0] for job in jobs}
    assert output_claims.wake_outputs(at.conn, limit=9, queued=len(waiting)) == []
    assert set(output_claims.wake_outputs(at.conn, limit=9, queued=0)) == waiting


def test_only_the_delivery_that_kills_its_workers_becomes_poison(
    at: World, sent: list[list[Wake]], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of its batch lose one life, and are processed before it takes the next worker."""
    twice = at.changed({"max_crashes": 2})
    monkeypatch.setattr(boot, "get_deps", lambda: twice.deps)
    at.registered("a")
    innocent, killer = succeeded(at, "a"), at.delivered(b"kills its parser")
    kill = "import os; from tasks.predictions import ingest as i; parse = i._parse; i._parse = "
    kill += "lambda deps, lease: os.kill(os.getpid(), 9) if b'kills' in lease.delivery.body else parse(deps, lease)"

    crash(at, "ingest", innocent, "none", environment, prepare=kill)
    step_runner.run_step("ingest", innocent, LEASED_BY)
    crash(at, "ingest", killer, "none", environment, prepare=kill)
    step_runner.run_step("ingest", killer, LEASED_BY)

    assert states(at, [innocent, killer]) == ["applied", "dead"]
    assert [letter["category"] for letter in at.letters()] == ["POISON"]
    assert at.edges("delivery", killer)[-1] == ("new", "dead")
