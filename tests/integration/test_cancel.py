"""Cancelling a job: nothing more is submitted or kept, what runs is stopped, what is published stays."""

from collections.abc import Iterator
from uuid import UUID

import pytest

from db import connection, leases
from embedded.stack import Stack
from moorage.errors import LeaseLost
from moorage.model import Wake
from tasks.jobs import cancel
from tasks.jobs.cancel import ActionOutcome
from tasks.outputs import keep
from tasks.predictions import poll
from tests.integration.chains import exhausted, hear, kept, planned, running, shown, started, tried
from tests.integration.core import LEASED_BY, World, database_of, prediction, together, world
from tests.integration.core import kept as facts


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "cancel")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def cancelled(at: World, job_id: UUID) -> ActionOutcome:
    return cancel.cancel_job(at.deps.database, at.deps.settings, job_id, "api")


def test_what_was_not_submitted_never_is(at: World) -> None:
    """Nobody pays for it."""
    job_id = started(at)

    outcome = cancelled(at, job_id)

    assert (outcome.before, outcome.after, outcome.wakes, outcome.refused) == ("open", "cancelled", (), None)
    assert tried(at, job_id) == [("replicate", 0, "cancelled")]


def test_the_provider_is_asked_to_stop_and_its_end_is_recorded(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is paid by the second."""
    job_id = started(at)
    prediction_id, external_id = running(at, job_id)
    asked = stoppable(at, monkeypatch)
    at.source.predictions[external_id] = prediction(external_id, "canceled")

    outcome = cancelled(at, job_id)
    assert outcome.wakes == (Wake("poll", prediction_id),)
    at.step("poll", prediction_id)

    assert asked == [external_id]
    assert tried(at, job_id) == [("replicate", 0, "cancelled")]
    assert at.letters() == []


def stoppable(at: World, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the provider take wishes to stop; returns the list that they come to."""
    asked: list[str] = []
    kind = type(at.deps.providers["replicate"])
    monkeypatch.setattr(kind, "can_cancel", property(lambda self: True))
    monkeypatch.setattr(kind, "cancel", lambda self, external_id, model=None: asked.append(external_id))
    return asked


def test_a_success_of_a_cancelled_job_is_late(at: World) -> None:
    """The application said that it does not want it."""
    job_id = started(at)
    _, external_id = running(at, job_id)
    cancelled(at, job_id)

    hear(at, external_id, "succeeded", [at.source.picture()])

    assert at.outputs(job_id) == []
    assert at.state("jobs", job_id) == "cancelled"


def test_a_stopped_prediction_nobody_hears_of_again_is_no_dead_letter(at: World) -> None:
    """A person could do nothing with it."""
    job_id = started(at)
    prediction_id, external_id = running(at, job_id)
    cancelled(at, job_id)
    at.source.predictions[external_id] = 503
    at.conn.execute("UPDATE predictions SET deadline_at = moment() WHERE id = %s", (prediction_id,))

    at.step("poll", prediction_id)

    assert at.state("predictions", prediction_id) == "cancelled"
    assert at.letters() == []


def test_files_that_wait_are_dropped_and_kept_ones_deleted(at: World) -> None:
    """Nothing of a job that nobody wants is stored."""
    job_id = started(at)
    _, external_id = running(at, job_id)
    hear(at, external_id, "succeeded", [at.source.picture(1), at.source.picture(2)])
    first, second = at.outputs(job_id)
    at.step("keep", first)

    outcome = cancelled(at, job_id)
    for wake in outcome.wakes:
        at.step(wake.step, wake.row_id)

    assert [wake for wake in outcome.wakes if wake.step == "discard"] == [Wake("discard", first)]
    assert (at.state("outputs", first), at.state("outputs", second)) == ("discarded", "dead")
    assert at.row("outputs", second)["category"] == "CANCELLED"
    assert at.letters() == []


def test_a_worker_that_keeps_a_file_meanwhile_records_nothing(at: World) -> None:
    """Its write-back finds its token gone; the object is an orphan for the sweep."""
    job_id = started(at)
    _, external_id = running(at, job_id)
    hear(at, external_id, "succeeded", [at.source.picture()])
    (output_id,) = at.outputs(job_id)
    lease = at.claimed_output(output_id)

    cancelled(at, job_id)

    with pytest.raises(LeaseLost):
        at.deps.database.run(lambda conn: keep.outputs.end_kept(conn, lease, facts(job_id, 0, lease)))
    row = at.row("outputs", output_id)
    assert (row["state"], row["crashes"], row["lease_token"]) == ("dead", 0, None)


def test_a_placeholder_that_is_published_stays_when_its_late_success_is_cancelled(at: World) -> None:
    """What readers see is not taken away."""
    job_id, late = exhausted(at, placeholder=True)
    kept(at, job_id)
    hear(at, late, "succeeded", [at.source.picture()])

    outcome = cancelled(at, job_id)

    assert (outcome.before, outcome.after) == ("keeping", "cancelled")
    assert shown(at, job_id) == [(0, True, True)]


def test_a_settled_job_is_not_cancelled(at: World) -> None:
    """Its files are published."""
    job_id = started(at, 1)
    _, external_id = running(at, job_id)
    hear(at, external_id, "succeeded", [at.source.picture()])
    kept(at, job_id)

    outcome = cancelled(at, job_id)

    assert (outcome.before, outcome.after, outcome.refused) == ("succeeded",) * 2 + ("the job is succeeded already",)


def test_cancelling_twice_is_no_error(at: World) -> None:
    """An application that got no answer asks again."""
    job_id = started(at)
    cancelled(at, job_id)

    assert cancelled(at, job_id) == ActionOutcome("cancelled", "cancelled")


@pytest.mark.parametrize("attempt", range(5))
def test_a_job_that_is_cancelled_while_its_file_is_kept_ends_once(at: World, attempt: int) -> None:
    """Whoever locks the job first decides; nothing waits afterwards."""
    job_id = started(at, 1)
    _, external_id = running(at, job_id)
    hear(at, external_id, "succeeded", [at.source.picture()])
    (output_id,) = at.outputs(job_id)
    with at.beside() as deps:
        together(
            lambda: at.step("keep", output_id), lambda: cancel.cancel_job(deps.database, deps.settings, job_id, "api")
        )

    state = at.state("jobs", job_id)
    assert (state, at.state("outputs", output_id)) in {
        ("succeeded", "kept"), ("cancelled", "dead"), ("cancelled", "discarding"),
    }  # fmt: skip
    assert (state == "succeeded") == bool(shown(at, job_id))


class Crash(BaseException):
    """The process ends here."""


def crashing(monkeypatch: pytest.MonkeyPatch, name: str, module: object = connection) -> None:
    """End the process at a failpoint, once."""
    left = [name]

    def failpoint(here: str) -> None:
        if here in left:
            left.remove(here)
            raise Crash

    monkeypatch.setattr(module, "failpoint", failpoint)


def test_a_crash_before_the_commit_changes_nothing(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever had no answer asks again."""
    job_id = started(at)
    crashing(monkeypatch, "cancel.before_commit")

    with pytest.raises(Crash):
        cancelled(at, job_id)

    assert at.state("jobs", job_id) == "open"
    assert cancelled(at, job_id).after == "cancelled"


def test_a_crash_after_the_commit_costs_only_wakes(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatch finds what is due."""
    job_id = started(at)
    prediction_id, _ = running(at, job_id)
    crashing(monkeypatch, "cancel.after_commit")

    with pytest.raises(Crash):
        cancelled(at, job_id)

    assert at.state("jobs", job_id) == "cancelled"
    assert at.deps.database.run(lambda conn: leases.wake_due(conn, "poll", limit=9, queue_is_empty=False)) == [
        prediction_id
    ]


@pytest.mark.parametrize(("point", "times"), [("poll.before_cancel", 1), ("poll.after_cancel", 2)])
def test_a_crash_while_the_provider_is_asked_to_stop_asks_again(
    at: World, monkeypatch: pytest.MonkeyPatch, point: str, times: int
) -> None:
    """To be asked twice does a provider no harm; not to be asked costs money."""
    job_id = started(at)
    prediction_id, external_id = running(at, job_id)
    asked = stoppable(at, monkeypatch)
    cancelled(at, job_id)
    at.source.predictions[external_id] = prediction(external_id, "canceled")
    crashing(monkeypatch, point, poll)
    with pytest.raises(Crash):
        at.step("poll", prediction_id)
    at.deps.database.run(lambda conn: leases.release_held_by(conn, LEASED_BY, "its process died"))

    at.step("poll", prediction_id)

    assert len(asked) == times
    assert at.state("predictions", prediction_id) == "cancelled"


def test_others_that_run_are_stopped_when_one_is_chosen(at: World) -> None:
    """Their files would be late."""
    job_id = started(at, 2)
    first, slow = running(at, job_id)
    at.source.predictions[slow] = prediction(slow, "processing")
    at.conn.execute("UPDATE predictions SET deadline_at = moment(), run_at = moment() WHERE id = %s", (first,))
    at.step("poll", first)
    planned(at, job_id)
    second, works = running(at, job_id)

    wakes = hear(at, works, "succeeded", [at.source.picture()])

    assert Wake("poll", first) in wakes
    assert at.row("predictions", first)["cancel_reason"] == "another prediction was chosen"
    assert at.row("predictions", second)["cancel_reason"] is None
