"""A second success of a job: its files are in reserve while those of the chosen prediction are stored."""

from collections.abc import Iterator
from itertools import permutations
from typing import Any
from uuid import UUID

import pytest

from embedded.stack import Stack
from tasks.audit import run
from tasks.jobs import cancel
from tests.integration.chains import hear, kept, running, shown, started, time_out
from tests.integration.core import World, database_of, world


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "late_success")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def two_running(at: World, entries: int = 2, **columns: Any) -> tuple[UUID, str, str]:
    """Return a job whose first prediction timed out and may still succeed, while its second runs."""
    job_id = started(at, entries, **columns)
    first, slow = running(at, job_id)
    time_out(at, first, slow)
    _, second = running(at, job_id)
    return job_id, slow, second


def states(at: World, job_id: UUID) -> list[str]:
    return [at.state("outputs", output_id) for output_id in at.outputs(job_id)]


def violations(at: World) -> list[str]:
    """Return what an audit finds; deliveries are made without their events here."""
    found = run.run_audit(at.deps, deep=False, second_look_seconds=0.0).findings
    return [f"{finding.check}: {finding.what}" for finding in found if finding.subject != "delivery"]


EVENTS = ("broken 0", "broken 1", "success")


@pytest.mark.parametrize("placeholder", [False, True])
@pytest.mark.parametrize("partial", ["keep", "discard"])
@pytest.mark.parametrize("order", list(permutations(EVENTS)), ids=" ".join)
def test_the_files_of_another_success_are_used_in_every_order(
    at: World, order: tuple[str, ...], partial: str, placeholder: bool
) -> None:
    """The first one's files are gone before, between or after the other one's success, which is reported twice."""
    job_id, slow, second = two_running(at, partial=partial, placeholder=placeholder)
    hear(at, second, "succeeded", [at.source.broken(), at.source.broken()])
    broken = at.outputs(job_id)

    for event in order:
        if event == "success":
            for _ in range(2):
                hear(at, slow, "succeeded", [at.source.picture()])
        else:
            at.step("keep", broken[int(event[-1])])
    kept(at, job_id)

    assert at.state("jobs", job_id) == "succeeded"
    assert [is_placeholder for _, is_placeholder, _ in shown(at, job_id)] == [False]
    assert states(at, job_id).count("kept") == 1 + (placeholder and order[-1] == "success")
    assert violations(at) == []


def test_files_in_reserve_are_not_downloaded_and_end_with_the_publication(at: World) -> None:
    """They cost nothing, and leave no dead letter."""
    job_id, slow, second = two_running(at)
    hear(at, second, "succeeded", [at.source.picture()])
    wakes = hear(at, slow, "succeeded", [at.source.picture()])
    chosen, reserve = at.outputs(job_id)
    due = "UPDATE outputs SET run_at = moment() + CASE WHEN id = %s THEN interval '0' ELSE interval '1 h' END"
    at.conn.execute(due, (reserve,))
    at.step("keep", reserve)

    assert [wake for wake in wakes if wake.step == "keep"] == []
    assert (at.state("jobs", job_id), states(at, job_id)) == ("keeping", ["waiting", "waiting"])
    at.conn.execute(due, (chosen,))
    at.step("keep", chosen)

    assert (at.state("jobs", job_id), states(at, job_id)) == ("succeeded", ["kept", "dead"])
    assert at.letters(reserve) == []
    assert violations(at) == []


def test_a_reserve_precedes_the_next_entry_and_a_shown_placeholder(at: World) -> None:
    """Its files are paid for, and nobody has to wait for them."""
    job_id, slow, second = two_running(at, 3, placeholder=True)
    hear(at, second, "succeeded", [at.source.broken()])
    hear(at, slow, "succeeded", [at.source.picture()])
    at.step("keep", at.outputs(job_id)[0])

    assert at.state("jobs", job_id) == "keeping"
    assert at.row("jobs", job_id)["reason"] == "none of 1 files could be kept; those of a late success are used"
    kept(at, job_id)
    assert (at.state("jobs", job_id), shown(at, job_id)) == ("succeeded", [(1, False, True)])


def test_a_reserve_that_fails_too_is_followed_by_the_next_entry(at: World) -> None:
    """It is used once, whatever its files are."""
    job_id, slow, second = two_running(at, 3)
    hear(at, second, "succeeded", [at.source.broken()])
    hear(at, slow, "succeeded", [at.source.broken()])
    kept(at, job_id)
    kept(at, job_id)

    assert at.state("jobs", job_id) == "open"
    _, third = running(at, job_id)
    hear(at, third, "failed")
    assert (at.state("jobs", job_id), states(at, job_id)) == ("failed", ["dead", "dead"])
    assert violations(at) == []


def test_a_cancelled_job_has_no_reserve(at: World) -> None:
    """Neither before nor after: a cancellation is final."""
    job_id, slow, second = two_running(at)
    hear(at, second, "succeeded", [at.source.broken()])
    hear(at, slow, "succeeded", [at.source.picture()])
    cancel.cancel_job(at.deps.database, at.deps.settings, job_id, "api")

    assert (at.state("jobs", job_id), states(at, job_id)) == ("cancelled", ["dead", "dead"])
    other, slow, second = two_running(at)
    cancel.cancel_job(at.deps.database, at.deps.settings, other, "api")
    hear(at, slow, "succeeded", [at.source.picture()])
    assert (at.state("jobs", other), at.outputs(other)) == ("cancelled", [])
    assert violations(at) == []


@pytest.mark.parametrize("when", ["keeping", "failed"])
def test_a_prediction_that_did_not_stop_is_taken(at: World, when: str) -> None:
    """Its provider reports that it is cancelled, and then that it has succeeded."""
    job_id, slow, second = two_running(at)
    hear(at, second, "succeeded", [at.source.broken()])
    hear(at, slow, "canceled")
    if when == "failed":
        kept(at, job_id)
    assert at.state("jobs", job_id) == when

    hear(at, slow, "succeeded", [at.source.picture()])
    kept(at, job_id)
    kept(at, job_id)

    assert at.state("jobs", job_id) == "succeeded"
    assert violations(at) == []


def test_a_failed_job_whose_success_was_ignored_is_found_by_the_audit(at: World) -> None:
    """As an earlier version left it."""
    job_id, slow, second = two_running(at)
    hear(at, second, "succeeded", [at.source.broken()])
    kept(at, job_id)
    hear(at, slow, "canceled")
    at.conn.execute("UPDATE predictions SET state = 'succeeded' WHERE external_id = %s", (slow,))

    assert any(found.startswith("7 jobs untried") for found in violations(at))
