"""A forgotten transaction that holds rows: its rows wait, everything else continues, and its session is named."""

import contextlib
import os
import threading
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple, NoReturn
from uuid import UUID

import psycopg
import pytest

from db import jobs, leases, lock_holders, ticks
from db.connection import Connection, connect
from embedded.stack import Stack
from moorage.errors import DatabaseLocked
from moorage.model import Lease
from moorage.setting_types import RETENTION_DAYS
from tasks import step
from tasks.outputs import discard
from tasks.step import Deps, LeaseGuard, commit_step
from tasks.sweeps import reconcile, retention
from tests.integration import command_line as cli
from tests.integration.core import LEASED_BY, Held, World, database_of, prediction, wait_until, world

LOCK_JOB = "SELECT FROM jobs WHERE id = %s FOR UPDATE"
LOCK_OUTPUT = "SELECT FROM outputs WHERE id = %s FOR UPDATE"
WAITING = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND application_name = %s"


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "locked_rows")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


class Forgotten(NamedTuple):
    """A session that is idle in a transaction."""

    conn: Connection
    pid: int

    def release(self) -> None:
        """End its transaction."""
        self.conn.rollback()


@contextlib.contextmanager
def forgotten(at: World, sql: str, *args: object) -> Iterator[Forgotten]:
    """Hold what a statement locks, idle in a transaction, as a person at a console does."""
    with contextlib.closing(connect(at.database_url, name="console")) as conn:
        conn.execute("BEGIN")
        conn.execute(sql, args)
        yield Forgotten(conn, conn.info.backend_pid)
        with contextlib.suppress(psycopg.Error):  # of a session that the test ended
            conn.execute("ROLLBACK")  # a closed connection may hold its locks for a moment


def counters(at: World, table: str, row_id: UUID) -> tuple[int, int, UUID | None]:
    """Return what a hand-back leaves: attempts, crashes, and the lease."""
    row = at.row(table, row_id)
    return row["attempt"], row["crashes"], row["lease_token"]


HANDED_BACK = (0, 0, None)


# --- the error


def named_error(at: World, job_id: UUID) -> DatabaseLocked:
    """Return the error of a statement that waits for a job; on a busy computer the holder may be missed once."""

    def attempt() -> DatabaseLocked | None:
        with pytest.raises(DatabaseLocked) as raised:
            at.deps.database.run(lambda conn: conn.execute(LOCK_JOB, (job_id,)), lock_ms=50)
        return raised.value if raised.value.facts else None

    found: DatabaseLocked = wait_until(attempt)
    return found


def test_the_error_names_who_holds_the_lock(at: World) -> None:
    """Without a name, somebody has to search pg_locks at night."""
    job_id = at.keeping([at.source.picture()]).job_id

    with forgotten(at, LOCK_JOB, job_id) as holder:
        locked = named_error(at, job_id)

    assert f"pid {holder.pid} (console, user moorage), idle in transaction for" in str(locked)
    assert locked.facts["pid"] == holder.pid
    assert (locked.retry_after or 0) >= lock_holders.MIN_WAIT_SECONDS


def test_behind_others_that_wait_the_holder_is_named(at: World) -> None:
    """Of ten sessions in a queue, nine wait for another that waits."""
    job_id = at.keeping([at.source.picture()]).job_id

    with forgotten(at, LOCK_JOB, job_id) as holder, contextlib.closing(connect(at.database_url, name="first")) as first:
        thread = threading.Thread(target=lambda: first.execute(LOCK_JOB, (job_id,)))
        thread.start()
        wait_until(lambda: at.conn.execute(WAITING, ("first",)).fetchone() is not None)
        locked = named_error(at, job_id)
        holder.release()
        thread.join()

    assert locked.facts["pid"] == holder.pid


def test_a_lock_that_ends_in_time_is_no_error(at: World) -> None:
    """Two outputs of a job that end together wait for each other all the time."""
    job_id = at.keeping([at.source.picture()]).job_id

    with forgotten(at, LOCK_JOB, job_id) as holder:
        thread = threading.Thread(target=lambda: (wait_until(waits), holder.release()))
        waits = partial(lambda: at.conn.execute(WAITING, ("moorage",)).fetchone() is not None)
        thread.start()
        at.deps.database.run(lambda conn: conn.execute(LOCK_JOB, (job_id,)), lock_ms=8000)
        thread.join()


# --- steps


def test_files_of_a_locked_job_are_handed_back_without_a_download(at: World) -> None:
    """One attempt for all of them: their time belongs to the files of other jobs, which are kept meanwhile."""
    locked = at.keeping([at.source.picture(n) for n in range(4)]).job_id
    ids = at.outputs(locked)

    with forgotten(at, LOCK_JOB, locked):
        asked = len(at.source.asked)
        for output_id in ids:
            at.step("keep", output_id)
        assert len(at.source.asked) == asked
        other = at.keeping([at.source.picture(9)]).job_id
        at.keep_all(other)

    rows = [at.row("outputs", output_id) for output_id in ids]
    assert [counters(at, "outputs", output_id) for output_id in ids] == [HANDED_BACK] * 4
    assert [row["reason"] is not None for row in rows] == [True, False, False, False]
    assert at.one("SELECT count(*) FROM outputs WHERE job_id = %s AND run_at > moment()", locked) == 4
    assert at.state("jobs", other) == "succeeded"

    with at.later("10 seconds") as then:
        then.keep_all(locked)
    assert at.state("jobs", locked) == "succeeded"
    assert {counters(at, "outputs", output_id)[1] for output_id in ids} == {0}


def test_files_of_a_locked_job_that_have_expired_wait_as_well(at: World) -> None:
    """Their dead letters would end the job: an attempt to write them costs two seconds each time."""
    job_id = at.keeping([at.source.picture(n) for n in range(2)]).job_id
    at.conn.execute("UPDATE outputs SET expires_at = moment() - interval '1 s'")
    first, second = at.outputs(job_id)

    with forgotten(at, LOCK_JOB, job_id):
        at.step("keep", first)

    assert [counters(at, "outputs", output_id) for output_id in (first, second)] == [HANDED_BACK] * 2
    assert at.one("SELECT count(*) FROM outputs WHERE run_at > moment()") == 2
    assert at.letters() == []


def test_files_of_a_locked_project_are_not_downloaded(at: World) -> None:
    """The last one would write the project's document; an application that holds it would have it fetched each time."""
    at.conn.execute("INSERT INTO projects (id, owner) VALUES ('p1', 'ann')")
    (output_id,) = at.outputs(at.keeping([at.source.picture()], project_id="p1").job_id)

    with forgotten(at, "UPDATE projects SET document = '{}'"):
        asked = len(at.source.asked)
        at.step("keep", output_id)

    assert len(at.source.asked) == asked
    assert counters(at, "outputs", output_id) == HANDED_BACK


@pytest.mark.parametrize("answer", ["the file", "404"])
def test_a_job_that_is_locked_during_the_download_counts_nothing(at: World, answer: str) -> None:
    """Neither the record of a file nor a dead letter can be written then: both wait, uncounted."""
    url = at.source.picture() if answer == "the file" else at.source.broken(404)
    job_id = at.keeping([url]).job_id
    (output_id,) = at.outputs(job_id)

    with contextlib.ExitStack() as stack:
        at.source.before_file = lambda _path: stack.enter_context(forgotten(at, LOCK_JOB, job_id)) and None
        at.step("keep", output_id)
        at.source.before_file = lambda _path: None

    assert counters(at, "outputs", output_id) == HANDED_BACK
    with at.later("10 seconds") as then:
        then.step("keep", output_id)
    assert at.state("jobs", job_id) == ("succeeded" if answer == "the file" else "failed")
    assert at.row("outputs", output_id)["crashes"] == 0


def test_a_row_that_is_locked_itself_is_handed_back_afterwards(at: World) -> None:
    """The worker continues with other rows; its step lived, so no crash is counted, whatever the sweep finds."""
    job_id = at.keeping([at.source.picture()]).job_id
    (output_id,) = at.outputs(job_id)

    with contextlib.ExitStack() as stack:
        at.source.before_file = lambda _path: stack.enter_context(forgotten(at, LOCK_OUTPUT, output_id)) and None
        at.step("keep", output_id)
        at.source.before_file = lambda _path: None
        assert at.row("outputs", output_id)["lease_token"] is not None

    wait_until(lambda: counters(at, "outputs", output_id) == HANDED_BACK)


def end_as_a_recycled_child(output_id: str) -> NoReturn:
    """Run a step whose row is locked meanwhile, and end as a child of Celery's pool: by its signal, then os._exit."""
    from worker import celery_tasks, step_runner  # they read the environment

    url = os.environ["DATABASE_URL"]
    console, eyes = connect(url, name="console"), connect(url)

    def be_locked(_deps: Deps, _lease: Lease, _guard: LeaseGuard) -> NoReturn:
        console.execute("BEGIN")
        console.execute(LOCK_OUTPUT, (output_id,))
        raise DatabaseLocked("somebody holds the row")

    def release() -> None:
        wait_until(lambda: eyes.execute(WAITING, ("moorage-heartbeat",)).fetchone() is not None)
        console.rollback()

    step_runner.STEPS["keep"] = be_locked
    step_runner.run_step("keep", UUID(output_id), LEASED_BY)
    threading.Thread(target=release).start()
    celery_tasks.signals.worker_process_shutdown.send(sender=None, pid=os.getpid(), exitcode=0)
    os._exit(0)


def test_a_child_that_is_recycled_hands_its_rows_back_first(at: World, stack: Stack) -> None:
    """Celery replaces a child after 500 tasks, or above a size: the lease expired, which counted a crash."""
    (output_id,) = at.outputs(at.keeping([at.source.picture()]).job_id)
    code = f"from tests.integration import test_locked_rows as t; t.end_as_a_recycled_child('{output_id}')"

    ended = cli.fork_server.run(["-c", code], env=cli.environment(stack, at.database_url), cwd=cli.ROOT)

    assert ended.returncode == 0, ended.stderr
    assert counters(at, "outputs", output_id) == HANDED_BACK


def test_a_provider_is_not_polled_about_a_locked_job(at: World) -> None:
    """Its answer could not be recorded, and the next wait would ask again."""
    made = at.registered()
    at.conn.execute("UPDATE predictions SET run_at = moment() WHERE id = %s", (made.prediction_id,))

    with forgotten(at, LOCK_JOB, made.job_id):
        at.step("poll", made.prediction_id)

    assert at.source.asked == []
    assert counters(at, "predictions", made.prediction_id) == HANDED_BACK


def test_a_webhook_of_a_locked_job_waits(at: World) -> None:
    """It is recorded already: its delivery is applied after the lock."""
    made = at.registered("abc")
    delivery_id = at.delivered(prediction("abc", "failed"))

    with forgotten(at, LOCK_JOB, made.job_id):
        at.step("ingest", delivery_id)

    assert counters(at, "deliveries", delivery_id) == HANDED_BACK
    with at.later("10 seconds") as then:
        then.step("ingest", delivery_id)
    assert at.state("deliveries", delivery_id) == "applied"


def test_what_cannot_be_repeated_waits_for_the_lock(at: World) -> None:
    """A submission was paid for: its outcome is recorded, however long the lock is held."""
    made = at.registered()
    at.conn.execute("UPDATE predictions SET run_at = moment() WHERE id = %s", (made.prediction_id,))
    lease = at.claim("predictions", made.prediction_id, ("running",))
    attempts: list[int] = []

    with forgotten(at, LOCK_JOB, made.job_id) as holder:

        def record(conn: Connection) -> str:
            attempts.append(1)
            if len(attempts) == 3:  # the first attempt, the one that is observed, the next one
                holder.release()
            conn.execute(LOCK_JOB, (made.job_id,))
            return "recorded"

        assert lease is not None
        assert commit_step(at.deps, lease, Held(), record, is_repeatable=False) == "recorded"


# --- sweeps


def test_reconcile_ends_overdue_jobs_beside_locked_ones(at: World) -> None:
    """It stopped at the first locked row, and no deadline was kept any more."""
    locked, other = (at.registered(name).job_id for name in ("one", "two"))
    at.conn.execute("UPDATE jobs SET run_at = moment(), deadline_at = moment()")
    at.conn.execute("UPDATE predictions SET state = 'lost', ended_at = moment(), ended_by = 'us', run_at = NULL")

    with forgotten(at, LOCK_JOB, locked):
        checked = reconcile.reconcile(at.deps, LEASED_BY, len, {"jobs"})["jobs"]

    assert checked == 1
    assert at.state("jobs", other) == "failed"
    assert at.state("jobs", locked) == "open"
    assert reconcile.reconcile(at.deps, LEASED_BY, len, {"jobs"})["jobs"] == 1
    assert at.state("jobs", locked) == "failed"


def test_a_job_that_is_locked_after_it_was_listed_is_waited_for_once(
    at: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its postponement waited for the same lock, and was logged as a second failure."""
    job_id, errors = at.registered().job_id, list[str]()
    at.conn.execute("UPDATE jobs SET run_at = moment()")
    monkeypatch.setattr(step.log, "error", lambda event, **_: errors.append(event))
    list_due = jobs.list_due

    with contextlib.ExitStack() as stack:

        def list_and_lock(conn: Connection) -> list[UUID]:
            conn.after_commit += (lambda: stack.enter_context(forgotten(at, LOCK_JOB, job_id)),)
            return list_due(conn)

        monkeypatch.setattr(jobs, "list_due", list_and_lock)
        assert reconcile.reconcile(at.deps, LEASED_BY, len, {"jobs"})["jobs"] == 1

    assert errors == ["job.check_failed"]
    assert at.one("SELECT run_at <= moment() FROM jobs")  # the next run checks it


def test_the_jobs_of_a_locked_project_do_not_stop_the_deadlines_of_others(at: World) -> None:
    """A hundred of them filled the page of jobs that are due, and each run ended at the second."""
    for _ in range(101):
        at.registered(project_id="p")
    other = at.registered().job_id
    at.conn.execute("UPDATE predictions SET state = 'lost', ended_at = moment(), ended_by = 'us', run_at = NULL")
    at.conn.execute("UPDATE jobs SET run_at = moment() - interval '1 h' WHERE id <> %s", (other,))
    at.conn.execute("UPDATE jobs SET run_at = moment() WHERE id = %s", (other,))

    with forgotten(at, "SELECT FROM projects FOR UPDATE"):
        reconcile.reconcile(at.deps, LEASED_BY, len, {"jobs"})

    assert at.state("jobs", other) == "failed"
    assert at.one("SELECT count(*) FROM jobs WHERE state = 'open'") == 101


def test_reconcile_releases_and_corrects_beside_locked_rows(at: World) -> None:
    """Leases, times in the future and a project's status are repaired for every row that is free."""
    first, second = (at.delivered(prediction(name, "failed")) for name in ("one", "two"))
    for project_id in ("p1", "p2"):
        at.conn.execute("INSERT INTO projects (id, owner) VALUES (%s, 'ann')", (project_id,))
        at.keeping([at.source.picture()], project_id=project_id)
    at.conn.execute("UPDATE projects SET status = 'assets_generated', document = '{\"scenes\": [], \"a\": 1}'")
    at.conn.execute("UPDATE deliveries SET run_at = moment() + interval '1 day' WHERE id IN (%s, %s)", (first, second))
    at.conn.execute("INSERT INTO ticks (sweep, slot, started_at) VALUES ('x', 1, moment() + interval '1 day')")

    with forgotten(at, "SELECT FROM deliveries WHERE id = %s FOR UPDATE", first) as holder:
        holder.conn.execute("SELECT FROM projects WHERE id = 'p1' FOR UPDATE")
        result = reconcile.reconcile(at.deps, LEASED_BY, len, ticks.DUE["reconcile"])

    assert result["clock"] == 1
    assert at.one("SELECT run_at <= moment() FROM deliveries WHERE id = %s", second)
    statuses = at.conn.execute(
        "SELECT id, status, computed_md5 = document_md5 AS ok FROM projects ORDER BY id"
    ).fetchall()
    assert [(row["status"], bool(row["ok"])) for row in statuses] == [("assets_generated", False), ("open", True)]


def test_the_rows_of_a_dead_process_are_released_beside_locked_ones(at: World) -> None:
    """A locked one is released when its lease ends."""
    ids = [at.delivered(prediction(name, "failed")) for name in ("one", "two")]
    for delivery_id in ids:
        at.claim("deliveries", delivery_id, ("new",))

    with forgotten(at, "SELECT FROM deliveries WHERE id = %s FOR UPDATE", ids[0]):
        released = at.deps.database.run(lambda conn: leases.release_held_by(conn, LEASED_BY, "it died"))

    assert released == [("deliveries", ids[1])]


def test_retention_deletes_beside_locked_rows(at: World) -> None:
    """One row in somebody's console must not keep all the others for ever."""
    changed = at.changed(retention_days={**RETENTION_DAYS, "rows": 7.0})
    ids = []
    for name in ("one", "two"):
        made = at.registered(name)
        ids.append(at.delivered(prediction(name, "failed")))
        at.step("ingest", ids[-1])
        at.conn.execute("UPDATE jobs SET settled_at = moment() - interval '8 days' WHERE id = %s", (made.job_id,))
    at.conn.execute("UPDATE dead_letters SET state = 'discarded', closed_at = moment(), closed_by = 'test'")

    with forgotten(at, "SELECT FROM deliveries WHERE id = %s FOR UPDATE", ids[0]):
        counts = retention.delete_expired(changed.deps, LEASED_BY)

    assert counts["jobs"] == 1
    assert at.one("SELECT count(*) FROM jobs") == 1


def test_retention_passes_rows_whose_dead_letters_are_locked(at: World) -> None:
    """One letter in somebody's console kept the whole batch of its kind, and with it every later one."""
    changed = at.changed(retention_days={**RETENTION_DAYS, "rows": 7.0, "bodies": 7.0})
    ids = [at.delivered({"id": name}) for name in ("one", "two")]
    for row_id in ids:
        at.step("ingest", row_id)
    at.conn.execute("UPDATE deliveries SET ended_at = moment() - interval '8 days'")
    lock = "SELECT FROM dead_letters WHERE subject_id = %s FOR UPDATE"

    with forgotten(at, lock, ids[0]):  # without its body, the other one is deleted at once
        counts = retention.delete_expired(changed.deps, LEASED_BY)

    assert (counts["failed_bodies"], counts["deliveries"]) == (1, 1)
    assert retention.delete_expired(changed.deps, LEASED_BY)["deliveries"] == 1


def test_jobs_that_stay_do_not_stall_the_retention_of_later_ones(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of jobs that are locked, or have an open dead letter, ended the run: the oldest stopped all others."""
    changed = at.changed(retention_days={**RETENTION_DAYS, "rows": 7.0})
    monkeypatch.setattr(retention, "_JOBS", 1)
    stuck, locked, free = [at.keeping([at.source.broken()]).job_id for _ in range(3)]
    for job_id in (stuck, locked, free):
        at.keep_all(job_id)
        at.keep_all(job_id)
    at.conn.execute("UPDATE dead_letters SET state = 'discarded', closed_at = moment(), closed_by = 'test'")
    at.conn.execute(
        "UPDATE dead_letters SET state = 'open', closed_at = NULL, closed_by = NULL WHERE job_id = %s", (stuck,)
    )
    at.conn.execute(  # bytes that a replay needs
        "UPDATE outputs SET source_kind = 'inline', source = NULL, source_data = 'x' WHERE job_id = %s", (stuck,)
    )
    at.conn.execute("UPDATE jobs SET settled_at = moment() - interval '8 days'")

    with forgotten(at, LOCK_JOB, locked):
        counts = retention.delete_expired(changed.deps, LEASED_BY)

    assert counts["jobs"] == 1
    assert {row["id"] for row in at.conn.execute("SELECT id FROM jobs").fetchall()} == {stuck, locked}


def test_a_spooled_input_of_a_locked_row_is_cleared_later(at: World) -> None:
    """The discard sweep goes on to the next one."""
    job_id = at.keeping([at.source.picture(n) for n in range(2)]).job_id
    at.keep_all(job_id)
    at.conn.execute("UPDATE outputs SET source_kind = 'object', source = 'inputs/' || id")
    first, second = at.outputs(job_id)

    with forgotten(at, LOCK_OUTPUT, first):
        discard.delete_spooled_inputs(at.deps)

    assert (at.row("outputs", first)["source"] is None, at.row("outputs", second)["source"]) == (False, None)


# --- the operator


def test_sessions_that_hold_locks_are_listed(at: World) -> None:
    """`moorage status` shows them: who waits now, and who is idle with locks."""
    job_id = at.keeping([at.source.picture()]).job_id

    with forgotten(at, LOCK_JOB, job_id) as holder, contextlib.closing(connect(at.database_url, name="first")) as first:
        thread = threading.Thread(target=lambda: first.execute(LOCK_JOB, (job_id,)))
        thread.start()
        (row,) = wait_until(lambda: lock_holders.list_holders(at.conn))
        holder.release()
        thread.join()

    assert (row["pid"], row["application_name"], row["waiting"]) == (holder.pid, "console", 1)
    assert row["state"] == "idle in transaction"
    assert lock_holders.list_holders(at.conn) == []
