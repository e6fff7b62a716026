"""Trying a job again: its dead letters first, else its chain from the start."""

from collections.abc import Iterator
from uuid import UUID

import pytest

from db import connection
from embedded.stack import Stack
from moorage.model import Wake
from tasks.jobs import replay
from tasks.jobs.cancel import ActionOutcome
from tasks.sweeps import dispatch
from tests.integration.chains import exhausted, hear, kept, planned, running, shown, started, tried
from tests.integration.core import World, database_of, png, world


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "retry")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def retried(at: World, job_id: UUID) -> ActionOutcome:
    return replay.retry_job(at.deps.database, at.deps.settings, job_id, "api")


def fail_all(at: World, job_id: UUID, entries: int) -> None:
    for _ in range(entries):
        _, external_id = running(at, job_id)
        hear(at, external_id, "failed", error="nsfw")


def test_a_failed_chain_starts_again_with_a_new_deadline(at: World) -> None:
    """And goes through all of its entries again."""
    job_id = started(at, 2)
    fail_all(at, job_id, 2)
    at.conn.execute("UPDATE jobs SET deadline_at = moment() WHERE id = %s", (job_id,))

    outcome = retried(at, job_id)

    assert outcome == ActionOutcome("failed", "open", (Wake("submit", planned(at, job_id)),))
    fail_all(at, job_id, 1)
    _, works = running(at, job_id)
    hear(at, works, "succeeded", [at.source.picture()])
    kept(at, job_id)
    assert [entry for _, entry, _ in tried(at, job_id)] == [0, 1, 0, 1]
    assert (at.state("jobs", job_id), at.row("jobs", job_id)["reopened"]) == ("succeeded", 1)


def test_dead_files_that_can_be_replayed_are_instead(at: World) -> None:
    """What was generated is paid for."""
    job_id = started(at, 1)
    _, external_id = running(at, job_id)
    broken = at.source.broken()
    hear(at, external_id, "succeeded", [broken])
    kept(at, job_id)
    at.source.files[broken.removeprefix(at.source.url(""))] = (200, png())

    outcome = retried(at, job_id)
    kept(at, job_id)

    assert (outcome.after, outcome.replayed, outcome.wakes) == ("keeping", 1, (Wake("keep", at.outputs(job_id)[0]),))
    assert at.state("jobs", job_id) == "succeeded"
    assert {letter["state"] for letter in at.letters()} == {"replayed"}


def test_dead_files_behind_a_placeholder_are_replayed(at: World) -> None:
    """They take its place as a late success does."""
    job_id = started(at, 1, placeholder=True)
    _, external_id = running(at, job_id)
    broken = at.source.broken()
    hear(at, external_id, "succeeded", [broken])
    kept(at, job_id)
    kept(at, job_id)
    assert shown(at, job_id) == [(1, True, True)]
    at.source.files[broken.removeprefix(at.source.url(""))] = (200, png())

    assert retried(at, job_id).replayed == 1
    kept(at, job_id)

    assert at.state("jobs", job_id) == "succeeded"
    assert shown(at, job_id) == [(0, False, True)]


def test_a_placeholder_is_shown_while_and_after_its_chain_is_tried_again(at: World) -> None:
    """A second failure takes nothing away, and makes no second placeholder."""
    job_id, _ = exhausted(at, placeholder=True)
    kept(at, job_id)

    assert retried(at, job_id).after == "open"
    assert shown(at, job_id) == [(0, True, True)]
    fail_all(at, job_id, 3)

    assert (at.state("jobs", job_id), at.row("jobs", job_id)["reason"]) == ("partial", "placeholder: nsfw")
    assert shown(at, job_id) == [(0, True, True)]
    assert len(at.outputs(job_id)) == 1


def test_files_of_a_chain_that_is_tried_again_die_and_the_next_entry_follows(at: World) -> None:
    """The placeholder that is there does not cut the chain short."""
    job_id, _ = exhausted(at, placeholder=True)
    kept(at, job_id)
    retried(at, job_id)
    _, external_id = running(at, job_id)

    hear(at, external_id, "succeeded", [at.source.broken()])
    kept(at, job_id)

    assert at.state("jobs", job_id) == "open"
    assert tried(at, job_id)[-1] == ("replicate", 1, "planned")


def crashed_retry(at: World, monkeypatch: pytest.MonkeyPatch, point: str) -> UUID:
    """Return a failed job whose retry died at a failpoint."""
    job_id = started(at, 1)
    fail_all(at, job_id, 1)

    def failpoint(name: str) -> None:
        if name == point:
            raise KeyboardInterrupt

    monkeypatch.setattr(connection, "failpoint", failpoint)
    with pytest.raises(KeyboardInterrupt):
        retried(at, job_id)
    monkeypatch.undo()
    return job_id


def test_a_crash_before_the_commit_changes_nothing(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second wish is the first."""
    job_id = crashed_retry(at, monkeypatch, "retry.before_commit")

    assert at.state("jobs", job_id) == "failed"
    assert retried(at, job_id).after == "open"


def test_a_crash_after_the_commit_costs_only_wakes(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dispatch finds what is planned, and a second wish finds the job open."""
    job_id = crashed_retry(at, monkeypatch, "retry.after_commit")

    sent: list[Wake] = []
    dispatch.dispatch_due(at.deps, lambda _queue: 0, lambda wakes: sent.extend(wakes) or len(wakes))
    assert sent == [Wake("submit", planned(at, job_id))]
    assert retried(at, job_id).refused == "the job is open: only failed and partial jobs can be retried"


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("succeeded", "the job is succeeded: only failed and partial jobs can be retried"),
        ("open", "the job is open: only failed and partial jobs can be retried"),
        ("partial", "it has published files; no dead letter can be replayed"),
    ],
)
def test_what_has_files_or_goes_on_is_not_tried_again(at: World, state: str, why: str) -> None:
    """A second generation would double what is published."""
    job_id = started(at, 1)
    if state != "open":
        _, external_id = running(at, job_id)
        bad = ["data:image/png;base64,a*b"] if state == "partial" else []
        hear(at, external_id, "succeeded", [at.source.picture(), *bad])
        kept(at, job_id)
    assert at.state("jobs", job_id) == state

    assert retried(at, job_id) == ActionOutcome(state, state, refused=why)


def test_what_moorage_did_not_start_is_not_started_by_it(at: World) -> None:
    """It does not know what to ask for."""
    made = at.registered("p1")
    hear(at, "p1", "failed", error="nsfw")

    outcome = retried(at, made.job_id)

    assert outcome.refused == "not submitted by moorage; no dead letter can be replayed"
