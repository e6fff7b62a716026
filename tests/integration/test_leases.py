"""Leases: one live claim a row, and a write under a lost one changes nothing."""

import time
from collections.abc import Iterator
from uuid import uuid4

import pytest

from db import discarding, leases, outputs, poison
from db.leases import STEP_BY_TABLE
from embedded.stack import Stack
from moorage import ids
from moorage.errors import LeaseLost
from moorage.model import Lease
from moorage.retry_policy import DeadLetterDecision
from tests.integration.core import World, database_of, kept, prediction, together, wait_until, world
from worker import failures
from worker.lease_heartbeat import Heartbeat

TABLES = {"deliveries": ("new", "unmatched"), "predictions": ("running",), "outputs": ("waiting",)}


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "leases")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def due(at: World, table: str):
    """Return the id of a due row of a table."""
    if table == "deliveries":
        return at.delivered(prediction("nobody", "processing"))
    if table == "outputs":
        return at.outputs(at.keeping([at.source.picture()]).job_id)[0]
    made = at.registered()
    at.conn.execute("UPDATE predictions SET run_at = moment() WHERE id = %s", (made.prediction_id,))
    return made.prediction_id


@pytest.fixture(params=sorted(TABLES))
def lease(request: pytest.FixtureRequest, at: World) -> Lease:
    table = request.param
    claimed = at.claim(table, due(at, table), TABLES[table])
    assert claimed is not None
    return claimed


def test_a_claim_counts_an_attempt_and_a_crash(at: World, lease: Lease) -> None:
    """Whoever never writes back has crashed."""
    row = at.row(lease.table, lease.row_id)

    assert (row["attempt"], row["crashes"], row["lease_token"]) == (1, 1, lease.token)
    assert lease.errors == 0


def test_a_leased_row_is_not_claimed_again(at: World, lease: Lease) -> None:
    """One live lease a row."""
    assert at.claim(lease.table, lease.row_id, TABLES[lease.table]) is None


def test_a_row_that_is_not_due_is_not_claimed(at: World, lease: Lease) -> None:
    """A doubled wake must not shorten a backoff."""
    leases.reschedule(at.conn, lease, wait_seconds=60, reason="later", counts_as_error=True)

    assert at.claim(lease.table, lease.row_id, TABLES[lease.table]) is None
    with at.later("61 seconds") as then:
        assert then.claim(lease.table, lease.row_id, TABLES[lease.table]) is not None


def test_a_failure_counts_and_takes_the_crash_back(at: World, lease: Lease) -> None:
    """Errors are attempts less crashes."""
    leases.reschedule(at.conn, lease, wait_seconds=0, reason="failed", counts_as_error=True)

    again = at.claim(lease.table, lease.row_id, TABLES[lease.table])

    assert again is not None
    assert (again.attempt, again.crashes, again.errors) == (2, 1, 1)


def test_a_hand_back_takes_attempt_and_crash_back(at: World, lease: Lease) -> None:
    """A stopping worker and our own outage cost the row nothing."""
    leases.reschedule(at.conn, lease, wait_seconds=0, reason="stopping", counts_as_error=False)

    row = at.row(lease.table, lease.row_id)
    assert (row["attempt"], row["crashes"], row["lease_token"]) == (0, 0, None)


def test_a_lost_lease_can_neither_renew_nor_hand_back(at: World, lease: Lease) -> None:
    """Its row belongs to another worker."""
    at.conn.execute(f"UPDATE {lease.table} SET lease_token = %s WHERE id = %s", (uuid4(), lease.row_id))
    before = at.row(lease.table, lease.row_id)

    assert not leases.renew(at.conn, lease, lease_seconds=30)
    assert not leases.is_current(at.conn, lease)
    with pytest.raises(LeaseLost):
        leases.reschedule(at.conn, lease, wait_seconds=0, reason="late", counts_as_error=True)

    assert at.row(lease.table, lease.row_id) == before


def test_a_renewal_revives_an_expired_lease_that_nobody_took(at: World, lease: Lease) -> None:
    """PostgreSQL was away for a minute; the work is still good."""
    with at.later("2 minutes") as then:
        assert leases.renew(then.conn, lease, lease_seconds=30)

        assert then.one(f"SELECT leased_until > moment() FROM {lease.table} WHERE id = %s", lease.row_id)


def test_a_row_that_crashed_too_often_is_not_claimed(at: World, lease: Lease) -> None:
    """The claim itself refuses, before any code that could crash."""
    free = "SET crashes = 5, attempt = 5, lease_token = NULL, leased_by = NULL, leased_until = NULL"
    at.conn.execute(f"UPDATE {lease.table} {free} WHERE id = %s", (lease.row_id,))
    states = TABLES[lease.table]

    assert at.claim(lease.table, lease.row_id, states) is None
    assert poison.lease(at.conn, STEP_BY_TABLE[lease.table], lease.row_id, leased_by="x", max_crashes=5) is not None


def test_a_dead_letter_names_the_provider_and_job_of_its_row(at: World, lease: Lease) -> None:
    """Operators select dead letters by them. A delivery has no job."""
    decision = DeadLetterDecision("INTERNAL", "Test", "for this test", retryable=True)
    step = STEP_BY_TABLE[lease.table]

    at.deps.database.run(lambda conn: failures.dead_letter_row(conn, at.deps, lease, step, decision, {}))

    (letter,) = at.letters(lease.row_id)
    made = at.conn.execute("SELECT provider, job_id FROM predictions").fetchone() or {"provider": "replicate"}
    assert (letter["provider"], letter["job_id"]) == (made["provider"], made.get("job_id"))
    assert at.one("SELECT job_id FROM events WHERE subject = 'dead_letter'") == letter["job_id"]


def test_a_poisoned_delivery_is_a_dead_letter(at: World) -> None:
    """Its event tells the state it was in."""
    delivery = at.delivered(prediction("nobody", "processing"))
    at.step("ingest", delivery)
    at.conn.execute("UPDATE deliveries SET crashes = 5, attempt = 5, run_at = moment()")

    at.step("ingest", delivery)

    assert at.edges("delivery", delivery)[-1] == ("unmatched", "dead")
    assert [letter["category"] for letter in at.letters(delivery)] == ["POISON"]


def test_eight_claims_at_once_give_one_lease(at: World) -> None:
    """A wake that came eight times."""
    row_id, won = due(at, "outputs"), []

    def claim() -> None:
        with at.beside() as deps:
            lease = deps.database.run(
                lambda conn: leases.claim(conn, "keep", row_id, leased_by="x", lease_seconds=30, max_crashes=5)
            )
            won.append(lease)

    together(*[claim] * 8)

    assert len([lease for lease in won if lease is not None]) == 1


def test_no_end_is_written_under_a_lost_lease(at: World) -> None:
    """Neither kept, nor dead, nor discarded."""
    lease = at.claimed_output(due(at, "outputs"))
    at.conn.execute("UPDATE outputs SET lease_token = %s", (uuid4(),))
    before = at.row("outputs", lease.row_id)

    for write in (
        lambda: outputs.end_kept(at.conn, lease, kept(ids.uuid7(), 0, lease)),
        lambda: outputs.end_dead(at.conn, lease, "INTERNAL", "late"),
        lambda: discarding.end_discarded(at.conn, lease),
        lambda: outputs.record_refresh(at.conn, lease, "http://x", None),
    ):
        with pytest.raises(LeaseLost):
            write()

    assert at.row("outputs", lease.row_id) == before


def beating(at: World, lease: Lease, seconds: float) -> Heartbeat:
    return Heartbeat(at.database_url, lease, lease_seconds=seconds, claimed_monotonic=time.monotonic())


def test_a_heartbeat_prolongs_its_lease(at: World) -> None:
    """A download of five minutes under a lease of thirty seconds."""
    lease = at.claimed_output(due(at, "outputs"))
    at.conn.execute("UPDATE outputs SET leased_until = moment() - interval '1 hour'")

    with beating(at, lease, 0.6):
        assert wait_until(lambda: at.one("SELECT leased_until > moment() FROM outputs"))


def test_a_heartbeat_notices_that_its_lease_is_lost(at: World) -> None:
    """The step stops at its next question."""
    lease = at.claimed_output(due(at, "outputs"))
    at.conn.execute("UPDATE outputs SET lease_token = %s", (uuid4(),))

    with beating(at, lease, 0.3) as guard:

        def lost() -> bool:
            try:
                guard.check()
            except LeaseLost:
                return True
            return False

        assert wait_until(lost)
