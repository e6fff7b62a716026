"""A file that fails for long: its job ends without it, attempts go on, and it is added once its bytes are stored."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import pytest

from db.audit import checks
from db.connection import Connection, current_time
from embedded.stack import Stack
from moorage.model import Wake
from tasks.jobs import cancel, delete_render, replay
from tests.integration import chains
from tests.integration.core import World, database_of, png, world


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "deferral")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url, notify_urls=("http://127.0.0.1:9",)) as made:
        realistic = made.changed({"wait_base_seconds": 2.0})
        yield realistic
        assert findings(realistic.conn) == []


def findings(conn: Connection) -> list[Any]:
    """Return what the audit's checks of outputs and jobs report."""
    found = []
    for check, sql in checks.CHECKS.items():
        if check.scope in ("outputs", "jobs", "renders", "dead_letters"):
            ids = [row["id"] for row in conn.execute(f"SELECT id FROM {check.scope}").fetchall()]
            args = {"ids": ids, "overdue_seconds": 10**9, "lease_seconds": 30.0}
            found += conn.execute(sql.encode(), args).fetchall()
    return found


def heal(at: World, *urls: str) -> None:
    """Have the server of these URLs answer with pictures from now on."""
    for number, url in enumerate(urls):
        at.source.files[urlsplit(url).path] = (200, png(number))


def work_until(at: World, start: datetime, minutes: float) -> None:
    """Make every attempt at every output that is due until so many minutes after the start, at its time."""
    while True:
        due = at.conn.execute(
            "SELECT id, run_at, extract(epoch FROM run_at - clock_timestamp()) AS ahead FROM outputs"
            " WHERE state = 'waiting' ORDER BY run_at LIMIT 1"
        ).fetchone()
        if due is None or due["run_at"] > start + timedelta(minutes=minutes):
            return
        with at.later(f"{max(float(due['ahead']), 0.0) + 0.001} seconds") as then:
            then.step("keep", due["id"])


def fail_until_deferred(at: World, output_id: UUID) -> None:
    while at.row("outputs", output_id)["deferred_at"] is None:
        assert at.state("outputs", output_id) == "waiting"
        at.conn.execute("UPDATE outputs SET run_at = moment() WHERE id = %s", (output_id,))
        at.step("keep", output_id)


def attempt(at: World, output_id: UUID) -> list[Wake]:
    at.conn.execute("UPDATE outputs SET run_at = moment() WHERE id = %s AND run_at IS NOT NULL", (output_id,))
    return at.step("keep", output_id)


def notifications(at: World, job_id: UUID) -> list[str]:
    rows = at.conn.execute("SELECT type FROM notifications WHERE job_id = %s ORDER BY event_id", (job_id,)).fetchall()
    return [row["type"] for row in rows]


def settled_after(at: World, job_id: UUID, start: datetime) -> float:
    """Return the minutes from the start to the first end of a job."""
    sql = "SELECT min(at) FROM events WHERE subject = 'job' AND subject_id = %s AND to_state IN ('partial', 'failed')"
    return float((at.one(sql, job_id) - start).total_seconds()) / 60


@pytest.mark.parametrize("partial", ["keep", "discard"])
def test_a_server_that_answers_503_for_45_minutes_costs_no_file(at: World, partial: str) -> None:
    """The URL lives for an hour: the outage is shorter than that."""
    urls = [at.source.broken(503) for _ in range(2)]
    made, start = at.keeping(urls, partial=partial), current_time(at.conn)

    work_until(at, start, 45)
    state_meanwhile = at.state("jobs", made.job_id)
    heal(at, *urls)
    work_until(at, start, 60)

    assert state_meanwhile == "failed"
    assert settled_after(at, made.job_id, start) <= 15
    assert [at.state("outputs", output_id) for output_id in at.outputs(made.job_id)] == ["kept"] * 2
    assert at.state("jobs", made.job_id) == "succeeded"
    assert at.letters() == []
    assert at.one("SELECT count(*) FROM variants WHERE render_id = %s", made.job_id) == 2


def test_of_four_files_with_one_failing_three_are_published_within_15_minutes(at: World) -> None:
    """The fourth is added when it can be stored: one state change, one notification, whatever it took."""
    failing = at.source.broken(503)
    made, start = at.keeping([failing, *(at.source.picture(n) for n in range(3))]), current_time(at.conn)

    work_until(at, start, 40)
    published = at.one("SELECT count(*) FROM variants WHERE render_id = %s", made.job_id)
    told = notifications(at, made.job_id)
    heal(at, failing)
    work_until(at, start, 60)

    assert settled_after(at, made.job_id, start) <= 15
    assert (published, told) == (3, ["job.partial"])
    assert notifications(at, made.job_id) == ["job.partial", "job.succeeded"]
    assert at.edges("job", made.job_id)[-3:] == [
        ("keeping", "partial"), ("partial", "keeping"), ("keeping", "succeeded"),
    ]  # fmt: skip
    assert at.one("SELECT count(*) FROM variants WHERE render_id = %s", made.job_id) == 4
    assert at.row("jobs", made.job_id)["reopened"] == 1


def test_the_file_of_a_settled_job_is_among_its_errors(at: World) -> None:
    """An application sees what is missing and why, and that it need not do anything."""
    made = at.keeping([at.source.broken(503)])
    (output_id,) = at.outputs(made.job_id)

    fail_until_deferred(at, output_id)

    (error,) = at.deps.database.run(lambda conn: replay.jobs.list_errors(conn, made.job_id))
    assert (error["type"], error["retryable"], error["dead_letter_id"]) == ("DOWNLOAD_FAILED", False, None)
    assert "503" in error["message"]
    assert at.row("outputs", output_id)["attempt"] == at.deps.settings.max_errors


def first_entry_fails(at: World, **columns: Any) -> tuple[UUID, UUID, str]:
    """Return a job whose first entry has one file that the server does not serve, with that file's output and URL."""
    job_id = chains.started(at, entries=2, **columns)
    _, external_id = chains.running(at, job_id)
    url = at.source.broken(503)
    chains.hear(at, external_id, "succeeded", [url])
    (output_id,) = at.outputs(job_id)
    fail_until_deferred(at, output_id)
    return job_id, output_id, url


def test_the_second_entry_is_used_at_the_error_limit_and_ends_the_attempts_at_the_first(at: World) -> None:
    """As early as when the file was given up; a file that is not needed any more is not waited for by anyone."""
    job_id, first, _ = first_entry_fails(at)
    tried = at.row("outputs", first)["attempt"]

    _, external_id = chains.running(at, job_id)
    chains.hear(at, external_id, "succeeded", [at.source.picture()])
    waiting_meanwhile = at.state("outputs", first)
    chains.kept(at, job_id)

    assert tried == at.deps.settings.max_errors
    assert waiting_meanwhile == "waiting"
    row = at.row("outputs", first)
    assert (row["state"], row["category"]) == ("dead", "CANCELLED")
    assert at.letters(first) == []
    assert at.state("jobs", job_id) == "succeeded"
    assert chains.shown(at, job_id) == [(1, False, True)]


def test_a_file_stored_while_the_next_entry_runs_is_used_and_the_entry_cancelled(at: World) -> None:
    """Whichever has files first; as with a late success."""
    job_id, first, url = first_entry_fails(at)
    chains.running(at, job_id)

    heal(at, url)
    attempt(at, first)

    assert at.state("jobs", job_id) == "succeeded"
    assert chains.shown(at, job_id) == [(0, False, True)]
    assert at.one("SELECT count(*) FROM predictions WHERE job_id = %s AND cancel_reason IS NOT NULL", job_id) == 1


def test_while_the_next_entry_has_files_nothing_is_downloaded_for_the_first(at: World) -> None:
    """Files of two entries are never published together; if those of the second fail too, the first goes on."""
    job_id, first, url = first_entry_fails(at)
    _, external_id = chains.running(at, job_id)
    second_url = at.source.broken(404)
    chains.hear(at, external_id, "succeeded", [second_url])

    heal(at, url)
    at.source.asked.clear()
    attempt(at, first)
    downloads = list(at.source.asked)
    chains.kept(at, job_id)
    attempt(at, first)

    assert downloads == []
    assert at.state("jobs", job_id) == "succeeded"
    assert chains.shown(at, job_id) == [(0, False, True)]


def test_a_late_file_replaces_the_placeholder(at: World) -> None:
    """The placeholder is what is shown meanwhile."""
    job_id, first, url = first_entry_fails(at, placeholder=True)
    _, external_id = chains.running(at, job_id)
    chains.hear(at, external_id, "failed", error="out of memory")
    chains.kept(at, job_id)
    shown_meanwhile = chains.shown(at, job_id)

    heal(at, url)
    attempt(at, first)

    assert [is_placeholder for _, is_placeholder, _ in shown_meanwhile] == [True]
    assert chains.shown(at, job_id) == [(0, False, True)]
    assert at.state("jobs", job_id) == "succeeded"


def test_a_late_file_does_not_wait_for_the_placeholder_that_is_being_stored(at: World) -> None:
    """As a late success does not."""
    job_id, first, url = first_entry_fails(at, placeholder=True)
    _, external_id = chains.running(at, job_id)
    chains.hear(at, external_id, "failed", error="out of memory")

    heal(at, url)
    attempt(at, first)
    chains.kept(at, job_id)

    assert at.state("jobs", job_id) == "succeeded"
    assert chains.shown(at, job_id) == [(0, False, True)]


def test_with_policy_discard_a_file_that_cannot_complete_its_job_is_given_up(at: World) -> None:
    """Half of the files are worth nothing to this application: as before, at the limit of errors."""
    made = at.keeping([at.source.broken(503), at.source.picture()], partial="discard")
    failing, _ = at.outputs(made.job_id)
    chains.kept(at, made.job_id)

    while at.state("outputs", failing) == "waiting":
        attempt(at, failing)

    (letter,) = at.letters(failing)
    assert (letter["category"], letter["retryable"]) == ("DOWNLOAD_FAILED", True)
    assert at.row("outputs", failing)["attempt"] == at.deps.settings.max_errors
    assert at.state("jobs", made.job_id) == "failed"


def test_past_its_expiry_a_file_is_given_up_and_its_job_stays_as_it_is(at: World) -> None:
    """After three attempts over ten minutes: the dead letter is all that is written."""
    made, start = at.keeping([at.source.broken(503), at.source.picture()]), current_time(at.conn)

    work_until(at, start, 120)

    failing, _ = at.outputs(made.job_id)
    (letter,) = at.letters(failing)
    expires_at = at.row("outputs", failing)["expires_at"]
    last_before = at.one(
        "SELECT max(at) FROM events WHERE subject_id = %s AND kind IS NOT NULL AND at < %s", failing, expires_at
    )
    assert timedelta(minutes=10) <= letter["created_at"] - expires_at <= timedelta(minutes=25)
    assert expires_at - last_before <= timedelta(seconds=15)
    assert notifications(at, made.job_id) == ["job.partial"]
    assert at.state("jobs", made.job_id) == "partial"


def test_without_an_expiry_attempts_go_on_for_a_day(at: World) -> None:
    """Nobody said until when it lives."""
    made, start = at.keeping([at.source.broken(503)]), current_time(at.conn)
    (output_id,) = at.outputs(made.job_id)
    at.conn.execute("UPDATE outputs SET expires_at = NULL")
    fail_until_deferred(at, output_id)

    for hours in (20, 23.9, 24.1, 24.2, 24.3):
        with at.later(f"{hours} hours") as then:
            attempt(then, output_id)
        if hours < 24.3:
            assert at.letters() == [], hours

    (letter,) = at.letters()
    assert letter["created_at"] > start + timedelta(hours=24)


def test_a_file_that_is_gone_is_a_dead_letter_and_its_replay_completes_the_job(at: World) -> None:
    """A permanent error stays permanent, also behind a settled job."""
    url = at.source.broken(503)
    made = at.keeping([url, at.source.picture()])
    failing, _ = at.outputs(made.job_id)
    chains.kept(at, made.job_id)
    fail_until_deferred(at, failing)

    at.source.files[urlsplit(url).path] = (404, b"")
    attempt(at, failing)
    (letter,) = at.letters(failing)
    state = at.state("jobs", made.job_id)
    heal(at, url)
    at.deps.database.run(lambda conn: replay.replay_dead_letter(conn, letter["id"], "test"))
    reopened = at.row("outputs", failing)["deferred_at"]
    attempt(at, failing)

    assert (letter["error"], state, reopened) == ("OutputGone", "partial", None)
    assert at.state("jobs", made.job_id) == "succeeded"


def test_unexpected_errors_keep_their_limit_and_do_not_inherit_the_server_s(
    at: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug here is not cured by waiting; but one of them after an outage is the first of twelve."""
    made = at.keeping([at.source.broken(503)])
    (output_id,) = at.outputs(made.job_id)
    fail_until_deferred(at, output_id)
    attempt(at, output_id)

    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("tasks.outputs.keep._keep_from_source", broken)
    for _ in range(11):
        attempt(at, output_id)
    after_eleven = at.state("outputs", output_id)
    attempt(at, output_id)

    assert after_eleven == "waiting"
    assert [letter["category"] for letter in at.letters(output_id)] == ["INTERNAL"]


def test_a_deleted_render_ends_the_attempts(at: World) -> None:
    """Nobody wants to see it any more."""
    made = at.keeping([at.source.broken(503), at.source.picture()])
    failing, _ = at.outputs(made.job_id)
    chains.kept(at, made.job_id)
    fail_until_deferred(at, failing)

    at.deps.database.run(
        lambda conn: delete_render.delete_render(
            conn, made.job_id, asset_base="", actor="test", reason="deleted by its owner"
        )
    )

    assert at.row("outputs", failing)["category"] == "CANCELLED"


def test_a_cancelled_job_ends_the_attempts(at: World) -> None:
    """While its next entry runs, a job can be cancelled: with all its files."""
    job_id, first, _ = first_entry_fails(at)

    cancel.cancel_job(at.deps.database, at.deps.settings, job_id, "test")

    assert at.row("outputs", first)["category"] == "CANCELLED"


def test_a_retry_of_the_application_makes_the_next_attempt_due(at: World) -> None:
    """It may know that the server is back."""
    url = at.source.broken(503)
    made = at.keeping([url])
    (output_id,) = at.outputs(made.job_id)
    fail_until_deferred(at, output_id)
    at.conn.execute("UPDATE outputs SET run_at = moment() + '5 min'")

    heal(at, url)
    outcome = replay.retry_job(at.deps.database, at.deps.settings, made.job_id, "test")
    at.step("keep", outcome.wakes[0].row_id)

    assert (outcome.refused, outcome.after) == (None, "failed")
    assert at.state("jobs", made.job_id) == "succeeded"
