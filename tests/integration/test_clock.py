"""A clock that jumps ahead and back must not leave rows waiting, or leases held, for as long as it was ahead."""

from collections.abc import Iterator
from datetime import timedelta

import pytest

from db import ticks
from embedded.stack import Stack
from tasks.sweeps import reconcile
from tests.integration.chains import planned, started
from tests.integration.core import World, database_of, world


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "clock")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        made.conn.execute("DELETE FROM ticks")
        made.conn.execute("DELETE FROM events WHERE at > moment()")
        yield made


def run_reconcile(at: World) -> dict[str, object]:
    tick = ticks.claim_slot(at.deps.database, "reconcile", 1.0)
    assert tick is not None
    return reconcile.reconcile(at.deps, "test", lambda _wakes: 0, tick.due)


def ahead(at: World) -> tuple[object, object]:
    """Leave one output waiting and one leased as a clock an hour ahead would have written them."""
    waiting, leased = at.outputs(at.keeping([at.source.picture(), at.source.picture()]).job_id)
    at.claimed_output(leased)
    at.conn.execute("UPDATE outputs SET run_at = moment() + interval '1 hour' WHERE id = %s", [waiting])
    at.conn.execute("UPDATE outputs SET leased_until = moment() + interval '1 hour' WHERE id = %s", [leased])
    return waiting, leased


def test_what_waits_for_a_time_that_was_never_meant_is_made_due(at: World) -> None:
    """The tick of a clock that was ahead betrays that it was set back."""
    waiting, leased = ahead(at)
    at.conn.execute("INSERT INTO ticks (sweep, slot, started_at) VALUES ('x', 1, moment() + interval '1 hour')")

    assert run_reconcile(at)["clock"] == 2

    assert at.one("SELECT run_at <= moment() FROM outputs WHERE id = %s", waiting)
    assert at.one("SELECT leased_until < moment() + interval '31 s' FROM outputs WHERE id = %s", leased)
    assert at.one("SELECT lease_token IS NOT NULL FROM outputs WHERE id = %s", leased)


@pytest.mark.parametrize("state", ["planned", "submitting"])
def test_an_order_that_waits_for_room_or_a_look_is_made_due(at: World, state: str) -> None:
    """Its job would wait for it as long as the clock was ahead."""
    prediction_id = planned(at, started(at))
    at.conn.execute(
        "UPDATE predictions SET state = %s, submitted_at = moment(), run_at = moment() + interval '1 hour'"
        " WHERE id = %s",
        (state, prediction_id),
    )
    at.conn.execute("INSERT INTO ticks (sweep, slot, started_at) VALUES ('x', 1, moment() + interval '1 hour')")

    assert run_reconcile(at)["clock"] == 1

    assert at.one("SELECT run_at <= moment() FROM predictions WHERE id = %s", prediction_id)


@pytest.mark.parametrize(("until", "due"), [("2 hours", 1), ("1 hour", 0)])
def test_a_late_result_is_polled_for_soon(at: World, until: str, due: int) -> None:
    """
    The jump itself passes the deadline, so that a prediction is abandoned whose webhook is lost: its files may expire
    within the hour. Where the provider cannot be polled, `run_at` is the end of the wait for its webhook.
    """
    prediction_id = planned(at, started(at))
    at.conn.execute(
        "UPDATE predictions SET state = 'abandoned', external_id = %s, submitted_at = moment(), category = 'TIMED_OUT',"
        " run_at = moment() + interval '1 hour', output_until = moment() + %s::interval WHERE id = %s",
        (f"late-{due}", until, prediction_id),
    )
    at.conn.execute("INSERT INTO ticks (sweep, slot, started_at) VALUES ('x', 1, moment() + interval '1 hour')")

    assert run_reconcile(at)["clock"] == due

    assert at.one("SELECT run_at <= moment() FROM predictions WHERE id = %s", prediction_id) is bool(due)


def test_a_breaker_that_was_probed_ahead_of_time_is_probed_soon(at: World) -> None:
    """Each jump of an hour would keep all files of a host waiting that has recovered meanwhile."""
    insert = "INSERT INTO breakers (target, opened_at, probe_at, reason) VALUES (%s, moment() + %s, moment() + %s, 'x')"
    hour, soon = timedelta(hours=1), timedelta(seconds=4)
    for target, opened, probed in (("host a", hour, hour), ("host b", timedelta(), soon), ("host c", hour, soon)):
        at.conn.execute(insert, (target, opened, probed))
    at.conn.execute("INSERT INTO target_attempts (target, at) VALUES ('host a', moment() + interval '1 hour')")
    at.conn.execute("INSERT INTO ticks (sweep, slot, started_at) VALUES ('x', 1, moment() + interval '1 hour')")

    assert run_reconcile(at)["clock"] == 2

    query = "SELECT target, opened_at <= moment() AS opened, probe_at <= moment() AS due FROM breakers ORDER BY 1"
    due = {row["target"]: (row["opened"], row["due"]) for row in at.conn.execute(query).fetchall()}
    assert due == {"host a": (True, True), "host b": (True, False), "host c": (True, True)}
    assert at.one("SELECT count(*) FROM target_attempts") == 0
    at.conn.execute("DELETE FROM breakers")


def test_a_wake_of_a_time_to_come_is_sent_again(at: World) -> None:
    """Dispatch repeats a wake after 30 s, if its row has not been claimed: its message may be lost."""
    (waiting,) = at.outputs(at.keeping([at.source.picture()]).job_id)
    at.conn.execute("UPDATE outputs SET woken_at = moment() + interval '1 hour' WHERE id = %s", [waiting])
    prediction_id = planned(at, started(at))
    at.conn.execute(
        "UPDATE predictions SET state = 'running', external_id = 'ahead', submitted_at = moment(),"
        " run_at = deadline_at, woken_at = moment() + interval '1 hour' WHERE id = %s",
        [prediction_id],
    )
    at.conn.execute("INSERT INTO ticks (sweep, slot, started_at) VALUES ('x', 1, moment() + interval '1 hour')")

    assert run_reconcile(at)["clock"] == 2

    assert at.one("SELECT woken_at IS NULL FROM outputs WHERE id = %s", waiting)
    assert at.one("SELECT woken_at IS NULL FROM predictions WHERE id = %s", prediction_id)


def test_what_was_never_submitted_gets_no_time_of_it(at: World) -> None:
    """With one, a job that is retried would pass over the entry of its chain as tried."""
    prediction_id = planned(at, started(at))
    at.conn.execute("UPDATE predictions SET run_at = moment() + interval '1 hour' WHERE id = %s", [prediction_id])
    at.conn.execute("INSERT INTO ticks (sweep, slot, started_at) VALUES ('x', 1, moment() + interval '1 hour')")

    assert run_reconcile(at)["clock"] == 1

    assert at.one("SELECT submitted_at IS NULL FROM predictions WHERE id = %s", prediction_id)


def test_the_outputs_of_a_job_are_counted_soon(at: World) -> None:
    """It finds a job that was not settled when its last output ended."""
    job_id = at.keeping([at.source.picture()]).job_id
    at.conn.execute("UPDATE jobs SET run_at = moment() + interval '1 hour' WHERE id = %s", [job_id])
    at.conn.execute("INSERT INTO ticks (sweep, slot, started_at) VALUES ('x', 1, moment() + interval '1 hour')")

    assert run_reconcile(at)["clock"] == 1

    assert at.one("SELECT run_at < moment() + interval '10 min' FROM jobs WHERE id = %s", job_id)


def test_an_order_whose_answer_was_lost_is_as_old_as_it_can_be(at: World) -> None:
    """The looks into its provider's list are counted from its submission, which was sent in no hour to come."""
    prediction_id = planned(at, started(at))
    at.conn.execute(
        "UPDATE predictions SET state = 'submitting', submitted_at = moment() + interval '1 hour',"
        " run_at = moment() + interval '1 hour' WHERE id = %s",
        (prediction_id,),
    )
    at.conn.execute("INSERT INTO ticks (sweep, slot, started_at) VALUES ('x', 1, moment() + interval '1 hour')")

    assert run_reconcile(at)["clock"] == 1

    assert at.one("SELECT submitted_at <= moment() FROM predictions WHERE id = %s", prediction_id)


def test_an_edge_taken_by_a_clock_that_was_ahead_betrays_it_too(at: World) -> None:
    """A jump may pass while no beat ticks; whatever was written in it took an edge."""
    waiting, _ = ahead(at)
    at.conn.execute(
        "UPDATE events SET at = moment() + interval '1 hour' WHERE subject = 'output' AND subject_id = %s", [waiting]
    )

    assert run_reconcile(at)["clock"] == 2

    assert at.one("SELECT run_at <= moment() FROM outputs WHERE id = %s", waiting)


def test_a_wait_that_was_asked_for_is_left_alone(at: World) -> None:
    """A server may ask for an hour; only a clock that was set back is a reason to come sooner."""
    waiting, _ = ahead(at)

    assert run_reconcile(at)["clock"] == 0

    assert at.one("SELECT run_at > moment() + interval '50 min' FROM outputs WHERE id = %s", waiting)


def test_a_notification_keeps_the_waits_of_its_schedule(at: World) -> None:
    """They are up to a day: made due each time, an application that is down would get all attempts within minutes."""
    job_id = at.keeping([at.source.picture()]).job_id
    for number, hours in enumerate((1, 24, 30)):
        at.conn.execute(
            "INSERT INTO notifications (id, job_id, event_id, type, run_at)"
            " VALUES (gen_random_uuid(), %s, %s, 'job.succeeded', moment() + make_interval(hours => %s))",
            (job_id, number + 1, hours),
        )
    at.conn.execute("INSERT INTO ticks (sweep, slot, started_at) VALUES ('x', 1, moment() + interval '1 hour')")

    run_reconcile(at)

    assert at.one("SELECT count(*) FROM notifications WHERE run_at > moment()") == 2
