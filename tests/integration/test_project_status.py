"""The status of a project follows from its jobs: exactly when the last one ends, and again where it disagrees."""

import functools
from collections.abc import Iterator

import pytest

from db import progress
from embedded.stack import Stack
from moorage.model import ProjectKey
from tasks.jobs import cancel, delete_render, replay
from tasks.sweeps import reconcile
from tests.integration.core import World, database_of, prediction, together, world


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "project_status")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def status(at: World, project_id: str = "p1") -> str:
    return str(at.one("SELECT status FROM projects WHERE id = %s", project_id))


def run_reconcile(at: World) -> int:
    return int(reconcile.reconcile(at.deps, "sweeper", len, {"statuses"})["statuses"])


def test_two_jobs_that_end_at_once_leave_no_project_open(at: World) -> None:
    """Each would see the other as unsettled, were the status counted in the statement that waits for the lock."""
    jobs = [at.keeping([at.source.picture()], project_id="p1", scene=n) for n in range(4)]
    outputs = [output_id for made in jobs for output_id in at.outputs(made.job_id)]

    with at.beside() as a, at.beside() as b, at.beside() as c, at.beside() as d:
        workers = [World(deps, at.conn, at.source, at.database_url) for deps in (a, b, c, d)]
        together(*(lambda w=w, o=o: w.step("keep", o) for w, o in zip(workers, outputs, strict=True)))

    assert status(at) == "assets_generated"
    assert run_reconcile(at) == 0


def test_failed_jobs_settle_a_project_too(at: World) -> None:
    """What will never come is not waited for."""
    made = at.keeping([at.source.broken(410)], project_id="p1", scene=1)

    assert status(at) == "open"
    at.keep_all(made.job_id)

    assert at.state("jobs", made.job_id) == "failed"
    assert status(at) == "assets_generated"


def test_a_late_success_opens_a_project_again(at: World) -> None:
    """In its own transaction: no sweep has to find out."""
    made = at.registered("p1", project_id="p1", scene=1)
    at.conn.execute("UPDATE predictions SET deadline_at = moment(), run_at = moment()")
    at.source.predictions["p1"] = prediction("p1", "processing")
    at.step("poll", made.prediction_id)
    assert (at.state("jobs", made.job_id), status(at)) == ("failed", "assets_generated")

    at.step("ingest", at.delivered(prediction("p1", "succeeded", [at.source.picture()])))

    assert (at.state("jobs", made.job_id), status(at)) == ("keeping", "open")
    at.keep_all(made.job_id)
    assert (at.state("jobs", made.job_id), status(at)) == ("succeeded", "assets_generated")


def test_a_repeated_registration_changes_no_project(at: World) -> None:
    """It is answered as already registered, unchanged: no scene is added, nothing is opened or created."""
    made = at.registered("x1", project_id="p1", scene=1)
    at.step("ingest", at.delivered(prediction("x1", "succeeded", [at.source.picture()])))
    at.keep_all(made.job_id)
    read = "SELECT * FROM projects ORDER BY id"
    before = at.conn.execute(read).fetchall()

    again = [at.registered("x1", project_id=project_id, scene=2) for project_id in ("p1", "p2")]

    assert [(one.job_id, one.is_new) for one in again] == [(made.job_id, False)] * 2
    assert at.conn.execute(read).fetchall() == before
    assert status(at) == "assets_generated"


def counts(at: World) -> tuple[int, ...]:
    """Return the failed jobs, how many are listed, and the files asked, kept and failed."""
    key = ProjectKey("ann", "p1")
    found = progress.get_progress(at.conn, key)
    files = (found["files_asked"], found["files_kept"], found["files_failed"])
    return found["failed"], len(progress.list_failed_jobs(at.conn, key)), *files


def test_a_deleted_render_is_no_failure(at: World) -> None:
    """Its files were kept; they are not asked for any more."""
    made = at.keeping([at.source.picture(1), at.source.picture(2)], project_id="p1", scene=1)
    at.keep_all(made.job_id)
    at.keep_all(at.keeping([at.source.picture(3)], project_id="p1").job_id)
    assert counts(at) == (0, 0, 3, 3, 0)

    with at.deps.database.transaction() as conn:
        delete_render.delete_render(conn, made.job_id, asset_base="", actor="api", reason="test")

    assert counts(at) == (0, 0, 1, 1, 0)
    assert progress.get_progress(at.conn, ProjectKey("ann", "p1"))["image_upload_progress"] == 100


def test_a_file_of_a_foreign_host_is_no_failure(at: World) -> None:
    """Its job succeeds without it, whether the job is read alone or not."""
    made = at.keeping([at.source.picture(1), "https://example.org/x.png"], project_id="p1", scene=1)
    at.keep_all(made.job_id)
    assert (at.state("jobs", made.job_id), counts(at)) == ("succeeded", (0, 0, 1, 1, 0))

    at.conn.execute("UPDATE jobs SET reopened = 1")

    assert counts(at) == (0, 0, 1, 1, 0)


def test_a_reopened_job_that_was_cancelled_has_not_failed(at: World) -> None:
    """Its files are published; the one that was replayed is missing."""
    made = at.keeping([at.source.picture(1), at.source.broken(410)], project_id="p1", scene=1)
    at.keep_all(made.job_id)
    (letter,) = at.letters()
    with at.deps.database.transaction() as conn:
        replay.replay_dead_letter(conn, letter["id"], "cli")

    cancel.cancel_job(at.deps.database, at.deps.settings, made.job_id, "api")

    assert at.state("jobs", made.job_id) == "cancelled"
    assert counts(at) == (0, 0, 2, 1, 1)


@pytest.mark.parametrize(("wrong", "right"), [("open", "assets_generated"), ("assets_generated", "open")])
def test_a_status_that_disagrees_with_the_rows_is_corrected(at: World, wrong: str, right: str) -> None:
    """Whoever changed it; and once it agrees nothing is written."""
    made = at.keeping([at.source.picture()], project_id="p1", scene=1)
    if right == "assets_generated":
        at.keep_all(made.job_id)
    at.conn.execute("UPDATE projects SET status = %s", (wrong,))

    assert [run_reconcile(at), run_reconcile(at)] == [1, 0]

    assert status(at) == right


def test_the_sweep_goes_through_any_number_of_projects(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page a run, from where the last run stopped, and from the start again after the last."""
    monkeypatch.setattr(progress, "list_wrong_statuses", functools.partial(progress.list_wrong_statuses, limit=2))
    for n in range(5):
        at.keep_all(at.keeping([at.source.picture()], project_id=f"p{n}", scene=1).job_id)
    at.conn.execute("UPDATE projects SET status = 'open'")

    assert [run_reconcile(at) for _ in range(4)] == [2, 2, 1, 0]


def test_a_project_whose_jobs_retention_took_stays_what_it_was(at: World) -> None:
    """Without rows nothing disagrees."""
    at.conn.execute("INSERT INTO projects (id, owner, status) VALUES ('old', 'ann', 'assets_generated')")

    assert run_reconcile(at) == 0

    assert status(at, "old") == "assets_generated"
