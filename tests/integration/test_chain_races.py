"""Chains against what may come at the same time: late successes, retries, deadlines, clocks and stopped tries."""

import contextlib
from collections.abc import Iterator
from uuid import UUID

import pytest

from db import clock_skew, leases, submissions
from embedded.stack import Stack
from moorage.model import Wake
from tasks.jobs import cancel, delete_render, replay
from tasks.step import Deps
from tasks.sweeps import reconcile
from tests.integration.chains import exhausted, hear, kept, planned, running, shown, started, time_out, tried
from tests.integration.core import LEASED_BY, World, database_of, png, prediction, together, world
from worker import step_runner


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "chain_races")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def retried(at: World, job_id: UUID) -> replay.ActionOutcome:
    return replay.retry_job(at.deps.database, at.deps.settings, job_id, "api")


def checked(at: World, job_id: UUID) -> list[Wake]:
    """Check a job as the sweep does that has just found it due."""
    return at.deps.database.run(lambda conn: reconcile.check_job(conn, job_id, at.deps, "sweep"))


def ended_by_us(at: World, prediction_id: UUID, external_id: str) -> None:
    """Have the provider say that it stopped a prediction, as it was asked to."""
    at.source.predictions[external_id] = prediction(external_id, "canceled")
    at.conn.execute("UPDATE predictions SET run_at = moment() WHERE id = %s", (prediction_id,))
    at.step("poll", prediction_id)
    assert at.state("predictions", prediction_id) == "cancelled"


# --- a retry, and what it meets -----------------------------------------------------------------------------------


def test_a_sweep_that_found_a_job_before_it_was_retried_leaves_it_alone(at: World) -> None:
    """It would cancel the new try for a deadline that is no longer the job's."""
    job_id, _ = exhausted(at)
    retried(at, job_id)

    wakes = checked(at, job_id)

    assert (at.state("jobs", job_id), wakes) == ("open", [])
    assert tried(at, job_id)[-1] == ("replicate", 0, "planned")


def test_a_chain_that_was_begun_anew_goes_on_there_when_a_late_success_brings_nothing(at: World) -> None:
    """The try that its success cancelled was never made; the application was promised a new chain."""
    job_id, late = exhausted(at)
    retried(at, job_id)

    hear(at, late, "succeeded", [at.source.broken()])
    assert tried(at, job_id)[-1] == ("replicate", 0, "cancelled")
    kept(at, job_id)

    assert at.state("jobs", job_id) == "open"
    assert tried(at, job_id)[-1] == ("replicate", 0, "planned")


def test_dead_files_that_died_again_do_not_keep_a_chain_from_starting_again(at: World) -> None:
    """The provider has deleted them for good: every wish to try again would end as the one before it."""
    job_id = started(at, 1)
    _, external_id = running(at, job_id)
    hear(at, external_id, "succeeded", [at.source.broken()])
    kept(at, job_id)
    assert retried(at, job_id).replayed == 1
    kept(at, job_id)
    assert at.state("jobs", job_id) == "failed"

    outcome = retried(at, job_id)

    assert (outcome.after, outcome.replayed) == ("open", 0)
    assert tried(at, job_id)[-1] == ("replicate", 0, "planned")


def test_dead_files_beside_published_ones_are_replayed_each_time(at: World) -> None:
    """There is no other way to them: the chain would double what is published."""
    job_id = started(at, 1)
    _, external_id = running(at, job_id)
    broken = at.source.broken()
    hear(at, external_id, "succeeded", [at.source.picture(), broken])
    kept(at, job_id)
    retried(at, job_id)
    kept(at, job_id)
    at.source.files[broken.removeprefix(at.source.url(""))] = (200, png(3))

    assert retried(at, job_id).replayed == 1
    kept(at, job_id)

    assert at.state("jobs", job_id) == "succeeded"


@pytest.mark.parametrize("attempt", range(5))
def test_a_retry_that_races_a_late_success_ends_with_one_result(at: World, attempt: int) -> None:
    """Whoever locks the job first decides; no try is left that nobody wants, and nothing is published twice."""
    job_id, late = exhausted(at, placeholder=attempt % 2 == 0)
    kept(at, job_id)
    webhook = at.delivered(prediction(late, "succeeded", [at.source.picture()]))
    with at.beside() as deps:
        together(
            lambda: at.step("ingest", webhook), lambda: replay.retry_job(deps.database, deps.settings, job_id, "api")
        )
    kept(at, job_id)

    assert at.state("jobs", job_id) == "succeeded"
    assert [state for _, _, state in tried(at, job_id) if state in ("planned", "submitting", "running")] == []
    assert [is_placeholder for _, is_placeholder, _ in shown(at, job_id)] == [False]
    assert at.row("jobs", job_id)["reopened"] == 1


# --- two that succeed late ----------------------------------------------------------------------------------------


def two_abandoned(at: World, **columns: object) -> tuple[UUID, list[str]]:
    """Return a job with its placeholder published, both of whose tries timed out, and the provider's ids of them."""
    job_id = started(at, 2, placeholder=True, **columns)
    names = []
    for _ in range(2):
        prediction_id, external_id = running(at, job_id)
        time_out(at, prediction_id, external_id)
        names.append(external_id)
    return job_id, names


@pytest.mark.parametrize("attempt", range(4))
def test_of_two_that_succeed_late_at_once_one_is_published(at: World, attempt: int) -> None:
    """The placeholder gives way once; the other is recorded as late."""
    job_id, names = two_abandoned(at)
    if attempt % 2:
        kept(at, job_id)
    webhooks = [at.delivered(prediction(name, "succeeded", [at.source.picture()])) for name in names]
    with at.beside() as deps:
        together(
            lambda: at.step("ingest", webhooks[0]),
            lambda: step_runner._claim_and_run(deps, "ingest", webhooks[1], LEASED_BY),
        )
    kept(at, job_id)

    assert at.state("jobs", job_id) == "succeeded"
    assert shown(at, job_id) == [(1, False, True)]
    assert sorted(at.row("deliveries", one)["reason"][:5] for one in webhooks) == ["chose", "late:"]


def test_a_late_success_after_the_render_was_deleted_publishes_nothing(at: World) -> None:
    """Somebody asked for it to be gone."""
    job_id, names = two_abandoned(at)
    kept(at, job_id)
    at.deps.database.run(
        lambda conn: delete_render.delete_render(conn, job_id, asset_base="http://x", actor="api", reason="asked for")
    )

    hear(at, names[0], "succeeded", [at.source.picture()])

    assert (at.state("jobs", job_id), shown(at, job_id), len(at.outputs(job_id))) == ("partial", [], 1)
    assert retried(at, job_id).refused is not None


def test_under_policy_discard_half_a_late_success_leaves_the_placeholder(at: World) -> None:
    """All or nothing holds for what comes late too; what was kept of it is deleted."""
    job_id, names = two_abandoned(at, partial="discard")
    kept(at, job_id)
    hear(at, names[0], "succeeded", [at.source.picture(), at.source.broken()])
    kept(at, job_id)

    assert at.state("jobs", job_id) == "partial"
    assert shown(at, job_id) == [(0, True, True)]
    assert [at.state("outputs", one) for one in at.outputs(job_id)] == ["kept", "discarding", "dead"]
    assert hear(at, names[1], "succeeded", [at.source.picture()])
    kept(at, job_id)
    assert (at.state("jobs", job_id), shown(at, job_id)) == ("succeeded", [(3, False, True)])


@pytest.mark.parametrize("attempt", range(4))
def test_a_late_success_that_races_the_delete_of_the_placeholder_ends_in_one_of_two_ways(
    at: World, attempt: int
) -> None:
    """Deleted first, nothing is published; chosen first, the render is not to be deleted just now."""
    job_id, names = two_abandoned(at)
    kept(at, job_id)
    webhook = at.delivered(prediction(names[0], "succeeded", [at.source.picture()]))
    with at.beside() as deps:
        together(lambda: at.step("ingest", webhook), lambda: deleted(deps, job_id))
    kept(at, job_id)

    seen = (at.state("jobs", job_id), shown(at, job_id))
    assert seen in [("partial", []), ("succeeded", [(1, False, True)])]


def deleted(deps: Deps, job_id: UUID) -> None:
    with contextlib.suppress(delete_render.JobNotSettled):
        deps.database.run(
            lambda conn: delete_render.delete_render(
                conn, job_id, asset_base="http://x", actor="api", reason="asked for"
            )
        )


def test_a_placeholder_says_why_the_last_entry_brought_nothing(at: World) -> None:
    """Not why an earlier one did: somebody would mend the wrong thing."""
    job_id = started(at, 2, placeholder=True)
    _, fails = running(at, job_id)
    hear(at, fails, "failed", error="out of memory")
    _, gone = running(at, job_id)
    hear(at, gone, "succeeded", [at.source.broken()])
    kept(at, job_id)
    kept(at, job_id)

    job = at.row("jobs", job_id)
    assert (job["state"], job["reason"]) == ("partial", "placeholder: none of 1 files could be kept")


# --- tries that were stopped for another's success ----------------------------------------------------------------


def stopped_for_nothing(at: World, entries: int = 2) -> tuple[UUID, UUID, str]:
    """Return a job whose second try was asked to stop for a late success that brought nothing, with that try."""
    job_id = started(at, entries)
    first, slow = running(at, job_id)
    time_out(at, first, slow)
    second, works = running(at, job_id)
    hear(at, slow, "succeeded", [at.source.broken()])
    kept(at, job_id)
    assert at.state("jobs", job_id) == "open"  # the second may still bring files
    return job_id, second, works


def test_an_entry_that_was_stopped_for_nothing_has_its_turn_again(at: World) -> None:
    """Nothing speaks against it: it was we who stopped it, for files that could not be kept."""
    job_id, second, works = stopped_for_nothing(at)

    ended_by_us(at, second, works)

    assert at.state("jobs", job_id) == "open"
    assert tried(at, job_id)[-1] == ("replicate", 1, "planned")


def test_a_try_that_was_stopped_and_succeeds_all_the_same_is_taken(at: World) -> None:
    """The wish to stop came too late, and the job wants its files by now."""
    job_id, _, works = stopped_for_nothing(at)

    hear(at, works, "succeeded", [at.source.picture()])
    kept(at, job_id)

    assert at.state("jobs", job_id) == "succeeded"


def test_a_prediction_that_is_replayed_is_not_stopped_again(at: World) -> None:
    """A person wants its files; the wish to stop it was another time's."""
    _, second, _ = stopped_for_nothing(at)
    at.conn.execute("UPDATE predictions SET crashes = 5, attempt = 5, run_at = moment() WHERE id = %s", (second,))
    at.step("poll", second)
    (letter,) = at.letters(second)

    at.deps.database.run(lambda conn: replay.replay_dead_letter(conn, letter["id"], "cli"))

    assert at.state("predictions", second) == "running"
    assert at.row("predictions", second)["cancel_reason"] is None


# --- clocks and deadlines -----------------------------------------------------------------------------------------


def test_a_placeholder_that_was_not_shown_yet_is_when_the_clock_goes_back(at: World) -> None:
    """The job had no time for another entry when it was made; a job that says `partial` has a render."""
    job_id = started(at, 2, placeholder=True)
    first, slow = running(at, job_id)
    at.conn.execute("UPDATE jobs SET deadline_at = moment() WHERE id = %s", (job_id,))
    time_out(at, first, slow)
    (stands_in,) = at.outputs(job_id)
    hear(at, slow, "succeeded", [at.source.broken()])
    at.step("keep", stands_in)
    at.conn.execute("UPDATE jobs SET deadline_at = moment() + '1 hour' WHERE id = %s", (job_id,))

    kept(at, job_id)
    if at.state("jobs", job_id) == "open":
        _, fails = running(at, job_id)
        hear(at, fails, "failed")

    assert at.state("jobs", job_id) == "partial"
    assert shown(at, job_id) == [(0, True, True)]


def test_a_submission_that_is_found_while_the_clock_is_ahead_is_polled_soon(at: World) -> None:
    """Its first poll was set to its deadline, which had passed by that clock: in ten minutes, not in some seconds."""
    job_id = started(at, 1)
    prediction_id = planned(at, job_id)
    sql = "UPDATE predictions SET state = 'submitting', submitted_at = moment(), deadline_at = moment() + '5 min'"
    at.conn.execute(f"{sql} WHERE id = %s", (prediction_id,))
    lease = at.claim("predictions", prediction_id, ("submitting",))
    assert lease is not None

    with at.later("1 hour") as ahead:
        found = {"first_poll_seconds": 15.0, "reason": "found in the list"}
        ahead.deps.database.run(lambda conn: submissions.mark_running(conn, lease, "found", **found))
    at.deps.database.run(lambda conn: clock_skew.correct_future_times(conn, 30.0))

    assert at.one("SELECT run_at <= moment() + interval '15 s' FROM predictions WHERE id = %s", prediction_id)


def test_a_planned_try_that_waits_for_room_ends_with_its_jobs_time(at: World) -> None:
    """It must not be sent for a job that has failed, nor keep it open."""
    job_id = started(at, 2, placeholder=True)
    lease = at.claim("predictions", planned(at, job_id), ("planned",))
    assert lease is not None
    at.conn.execute("UPDATE jobs SET deadline_at = moment(), run_at = moment() WHERE id = %s", (job_id,))

    checked(at, job_id)
    kept(at, job_id)

    assert tried(at, job_id)[0] == ("replicate", 0, "cancelled")
    assert at.row("jobs", job_id)["reason"] == "placeholder: the job's deadline has passed"
    assert not leases.is_current(at.conn, lease)


# --- cancelling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attempt", range(4))
def test_a_late_success_that_races_a_cancel_leaves_nothing_behind(at: World, attempt: int) -> None:
    """Chosen first, its files are dropped again; cancelled first, it is late."""
    job_id = started(at, 2)
    first, slow = running(at, job_id)
    time_out(at, first, slow)
    webhook = at.delivered(prediction(slow, "succeeded", [at.source.picture()]))
    with at.beside() as deps:
        together(
            lambda: at.step("ingest", webhook), lambda: cancel.cancel_job(deps.database, deps.settings, job_id, "api")
        )

    assert at.state("jobs", job_id) == "cancelled"
    assert [at.state("outputs", one) for one in at.outputs(job_id)] in ([], ["dead"])
    assert tried(at, job_id)[-1] == ("replicate", 1, "cancelled")
