"""Chains: one entry after the other until one brings files, else a placeholder, which gives way to a late success."""

from collections.abc import Iterator

import pytest

from db import projects
from embedded.stack import Stack
from moorage.model import ProjectKey, Wake
from tasks.audit import run
from tasks.jobs import cancel
from tasks.sweeps import reconcile
from tests.integration.chains import exhausted, hear, kept, planned, running, shown, started, time_out, tried
from tests.integration.core import World, database_of, world


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "chain")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def urls_of(at: World, project_id: str) -> list[str]:
    project = at.deps.database.run(lambda conn: projects.get(conn, ProjectKey("ann", project_id)))
    return [url for scene in project["document"]["scenes"] for url in scene.get("imageUrls", [])]


def with_project(at: World, project_id: str = "house") -> dict[str, object]:
    """Return the columns of a job for scene 0 of a new project."""
    at.conn.execute(
        "INSERT INTO projects (id, owner, document) VALUES (%s, 'ann', '{\"scenes\": [{\"index\": 0}]}')", (project_id,)
    )
    return {"project_id": project_id, "scene": "0", "placeholder": True}


def test_a_times_out_b_fails_c_works(at: World) -> None:
    """One render, from C; the history has all three."""
    job_id = started(at, placeholder=True)
    first, slow = running(at, job_id)
    wakes = time_out(at, first, slow)
    assert wakes == [Wake("submit", planned(at, job_id))]
    _, broken = running(at, job_id)
    hear(at, broken, "failed", error="500")
    third, works = running(at, job_id)

    hear(at, works, "succeeded", [at.source.picture()])
    kept(at, job_id)

    assert tried(at, job_id) == [
        ("replicate", 0, "abandoned"), ("replicate", 1, "failed"), ("replicate", 2, "succeeded"),
    ]  # fmt: skip
    assert at.state("jobs", job_id) == "succeeded"
    assert at.row("jobs", job_id)["chosen_id"] == third
    assert shown(at, job_id) == [(0, False, True)]


def test_a_chain_that_brings_nothing_ends_in_a_marked_placeholder(at: World) -> None:
    """The application has a picture to show, and is told that it is none."""
    job_id, _ = exhausted(at, **with_project(at))
    assert at.state("jobs", job_id) == "keeping"

    kept(at, job_id)

    job = at.row("jobs", job_id)
    assert (job["state"], job["reason"]) == ("partial", "placeholder: out of memory")
    assert shown(at, job_id) == [(0, True, True)]
    assert tried(at, job_id)[-1] == ("placeholder", None, "succeeded")
    assert len(urls_of(at, "house")) == 1
    (output,) = (at.row("outputs", output_id) for output_id in at.outputs(job_id))
    assert (output["width_px"], output["height_px"], output["format"]) == (1024, 1024, "png")
    assert output["thumb_key"]


def test_a_late_success_takes_only_the_placeholders_place(at: World) -> None:
    """Its files come after, the cover moves, and no reader sees the placeholder any more; a published idx stays."""
    job_id, late = exhausted(at, **with_project(at))
    kept(at, job_id)
    before = urls_of(at, "house")

    hear(at, late, "succeeded", [at.source.picture(1), at.source.picture(2)])
    assert shown(at, job_id) == [(0, True, True)]  # readable meanwhile
    kept(at, job_id)

    assert at.state("jobs", job_id) == "succeeded"
    assert shown(at, job_id) == [(1, False, True), (2, False, False)]
    assert len(urls_of(at, "house")) == 2
    assert not set(before) & set(urls_of(at, "house"))
    assert at.one("SELECT count(*) FROM render_variants WHERE render_id = %s", job_id) == 3


def test_a_success_that_comes_while_the_placeholder_is_kept_is_chosen(at: World) -> None:
    """It is not late: nothing was published yet."""
    job_id, late = exhausted(at, placeholder=True)
    (stands_in,) = at.outputs(job_id)

    hear(at, late, "succeeded", [at.source.picture()])
    real = at.outputs(job_id)[1]
    at.step("keep", real)
    assert at.state("jobs", job_id) == "keeping"  # settled once, when the placeholder has ended too
    at.step("keep", stands_in)

    assert at.state("jobs", job_id) == "succeeded"
    assert shown(at, job_id) == [(1, False, True)]


def test_a_late_success_whose_files_die_leaves_the_placeholder(at: World) -> None:
    """What was shown is not taken back, and the dead files can be replayed."""
    job_id, late = exhausted(at, placeholder=True)
    kept(at, job_id)

    hear(at, late, "succeeded", [at.source.broken()])
    kept(at, job_id)

    job = at.row("jobs", job_id)
    assert (job["state"], job["reason"]) == ("partial", "placeholder: none of 1 files could be kept")
    assert shown(at, job_id) == [(0, True, True)]
    assert at.one("SELECT provider FROM predictions WHERE id = %s", job["chosen_id"]) == "placeholder"


@pytest.mark.parametrize("partial", ["keep", "discard"])
def test_files_that_all_die_let_the_chain_go_on(at: World, partial: str) -> None:
    """A success that nothing could be kept of is none; under policy discard, neither is half of one."""
    job_id = started(at, 2, partial=partial)
    _, broken = running(at, job_id)
    good = [at.source.picture()] if partial == "discard" else []

    hear(at, broken, "succeeded", [*good, at.source.broken()])
    kept(at, job_id)
    assert at.state("jobs", job_id) == "open"
    _, works = running(at, job_id)
    hear(at, works, "succeeded", [at.source.picture(7)])
    kept(at, job_id)

    assert at.state("jobs", job_id) == "succeeded"
    assert len(shown(at, job_id)) == 1


def test_a_chain_without_a_placeholder_fails_with_the_last_reason(at: World) -> None:
    """And a late success reopens it."""
    job_id, late = exhausted(at)
    assert (at.state("jobs", job_id), at.row("jobs", job_id)["reason"]) == ("failed", "out of memory")

    hear(at, late, "succeeded", [at.source.picture()])
    kept(at, job_id)

    assert at.state("jobs", job_id) == "succeeded"


def test_what_was_not_submitted_when_a_success_comes_never_is(at: World) -> None:
    """It would cost a generation that nobody looks at."""
    job_id = started(at, 2)
    first, slow = running(at, job_id)
    time_out(at, first, slow)

    hear(at, slow, "succeeded", [at.source.picture()])

    assert tried(at, job_id) == [("replicate", 0, "succeeded"), ("replicate", 1, "cancelled")]


def test_what_chains_leave_behind_breaks_no_rule(at: World) -> None:
    """Placeholders, late successes, dead files and jobs that were cancelled are all right to the audit."""
    for late_files in ([], [at.source.picture(3)], [at.source.broken()]):
        job_id, late = exhausted(at, placeholder=True)
        kept(at, job_id)
        if late_files:
            hear(at, late, "succeeded", late_files)
            kept(at, job_id)
    dropped = started(at)
    _, works = running(at, dropped)
    hear(at, works, "succeeded", [at.source.picture(4), at.source.picture(5)])
    at.step("keep", at.outputs(dropped)[0])
    cancel.cancel_job(at.deps.database, at.deps.settings, dropped, "api")
    running(at, started(at))
    started(at)

    report = run.run_audit(at.deps, deep=False, second_look_seconds=0.0)

    of_chains = (
        "job",
        "prediction",
        "output",
        "render",
        "dead_letter",
    )  # deliveries are made without their events here
    assert [finding for finding in report.findings if finding.subject in of_chains] == []


def test_no_entry_is_planned_past_the_deadline(at: World) -> None:
    """The application waits no longer than it said."""
    job_id = started(at)
    prediction_id, slow = running(at, job_id)
    at.conn.execute("UPDATE jobs SET deadline_at = moment(), run_at = moment() WHERE id = %s", (job_id,))

    time_out(at, prediction_id, slow)

    assert (at.state("jobs", job_id), len(tried(at, job_id))) == ("failed", 1)


def test_an_open_jobs_deadline_ends_what_was_not_submitted(at: World) -> None:
    """A provider without room must not hold a job for ever."""
    job_id = started(at, placeholder=True)
    at.conn.execute("UPDATE jobs SET deadline_at = moment(), run_at = moment() WHERE id = %s", (job_id,))

    reconcile.reconcile(at.deps, "sweep", len, {"jobs"})

    assert tried(at, job_id) == [("replicate", 0, "cancelled"), ("placeholder", None, "succeeded")]
    kept(at, job_id)
    assert at.row("jobs", job_id)["reason"] == "placeholder: the job's deadline has passed"
