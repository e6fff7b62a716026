"""A step whose process lived counts no crash: its row is written back, however long PostgreSQL is unavailable."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from psycopg import sql

from db.connection import Connection, connect
from embedded.stack import Stack
from media import validate
from moorage.errors import DatabaseUnavailable, InvalidMedia
from tasks import step
from tests.integration.core import Held, World, database_of, world
from worker import shutdown

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "living_steps")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


class Outage:
    """PostgreSQL refuses every connection to the database of a world, but for the test's own."""

    def __init__(self, at: World) -> None:
        self._at = at

    def _execute(self, allowed: str) -> None:
        info = self._at.conn.info
        with closing(connect(self._at.database_url.replace(f"/{info.dbname}", "/postgres"))) as admin:
            admin.execute(
                sql.SQL(f"ALTER DATABASE {{}} ALLOW_CONNECTIONS {allowed}").format(sql.Identifier(info.dbname))
            )
            if allowed == "false":
                end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> %s"
                admin.execute(end, (info.dbname, info.backend_pid))

    def begin(self) -> None:
        self._execute("false")

    def end(self) -> None:
        self._execute("true")


class Clock:
    """The module `time` for `commit_step`: an hour passes between two attempts, and a call is made after the third."""

    def __init__(self, after_third: Callable[[], None]) -> None:
        self.attempts, self._after_third = 0, after_third

    def monotonic(self) -> float:
        return self.attempts * 3600.0

    def sleep(self, _seconds: float) -> None:
        self.attempts += 1
        if self.attempts == 3:
            self._after_third()


def waiting(at: World, url: str) -> UUID:
    (output_id,) = at.outputs(at.keeping([url]).job_id)
    return output_id


def counts(at: World, output_id: UUID) -> tuple[str, int, int, bool]:
    row = at.row("outputs", output_id)
    return row["state"], row["attempt"], row["crashes"], row["lease_token"] is not None


def keep_during_outage(
    at: World, monkeypatch: pytest.MonkeyPatch, output_id: UUID, after_third: Callable[[Outage], None] = Outage.end
) -> None:
    """Run the keep step; PostgreSQL becomes unavailable during its download."""
    outage = Outage(at)
    at.source.before_file = lambda _path: outage.begin()
    monkeypatch.setattr(step, "time", Clock(lambda: after_third(outage)))
    try:
        at.step("keep", output_id)
    finally:
        outage.end()


@pytest.mark.parametrize(
    ("status", "expected"), [(200, ("kept", 1, 0, False)), (500, ("waiting", 1, 0, False))], ids=["result", "failure"]
)
def test_an_outcome_is_recorded_however_long_postgresql_is_unavailable(
    at: World, monkeypatch: pytest.MonkeyPatch, status: int, expected: tuple[str, int, int, bool]
) -> None:
    """After seven minutes the step gave up and its lease expired: five such outages made POISON of a good file."""
    output_id = waiting(at, at.source.picture() if status == 200 else at.source.broken(status))

    keep_during_outage(at, monkeypatch, output_id)

    assert counts(at, output_id) == expected


def test_a_transaction_that_fails_alone_does_not_hold_its_worker(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement that always exceeds its time limit would otherwise be repeated for ever."""
    output_id = waiting(at, at.source.picture())
    monkeypatch.setattr(step, "time", Clock(lambda: None))
    at.conn.execute("""
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'too slow' USING ERRCODE = '57014'; END $$;
        CREATE TRIGGER refuse BEFORE INSERT ON render_variants FOR EACH ROW EXECUTE FUNCTION refuse()
    """)

    try:
        at.step("keep", output_id)
    finally:
        at.conn.execute("DROP FUNCTION refuse CASCADE")

    assert counts(at, output_id) == ("waiting", 0, 0, False)


@pytest.mark.parametrize(("is_repeatable", "attempts"), [(True, 11), (False, 31)])
def test_a_result_that_exists_nowhere_else_is_not_given_up_at_the_first_check(
    at: World, monkeypatch: pytest.MonkeyPatch, is_repeatable: bool, attempts: int
) -> None:
    """PostgreSQL may refuse this transaction for half a minute, and the row be writable: it was paid for."""
    lease, clock = at.claimed_output(waiting(at, at.source.picture())), Clock(lambda: None)
    monkeypatch.setattr(step, "time", clock)
    tried: list[int] = []

    def refuse(_conn: Connection) -> str:
        tried.append(1)
        if len(tried) < fails_until:
            raise DatabaseUnavailable("too slow")
        return "recorded"

    fails_until = attempts
    assert step.commit_step(at.deps, lease, Held(), refuse, is_repeatable=is_repeatable) == "recorded"

    tried.clear()
    fails_until = 1000
    with pytest.raises(DatabaseUnavailable):
        step.commit_step(at.deps, lease, Held(), refuse, is_repeatable=is_repeatable)
    assert len(tried) == attempts


def test_a_stopping_worker_does_not_wait_for_postgresql(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lease expires: nothing can be written."""
    output_id = waiting(at, at.source.picture())
    monkeypatch.setattr(shutdown, "is_grace_over", lambda: stopping.is_set())
    stopping = threading.Event()

    keep_during_outage(at, monkeypatch, output_id, lambda _outage: stopping.set())

    assert counts(at, output_id) == ("waiting", 1, 1, True)


def test_after_an_outage_nothing_is_written_under_another_token(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker may have claimed the row meanwhile."""
    output_id = waiting(at, at.source.picture())
    other = uuid4()

    def lose(outage: Outage) -> None:
        at.conn.execute("UPDATE outputs SET lease_token = %s WHERE id = %s", (other, output_id))
        outage.end()

    keep_during_outage(at, monkeypatch, output_id, lose)

    row = at.row("outputs", output_id)
    assert (row["state"], row["lease_token"], row["crashes"]) == ("waiting", other, 1)


def test_a_bug_in_a_step_is_counted_and_ends_as_internal(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in no table of error classes is ours to repair: else it would be repeated for ever."""
    output_id = waiting(at, at.source.picture())
    monkeypatch.setattr(validate, "validate_file", lambda *_: len(None))  # type: ignore[arg-type]

    at.step("keep", output_id)
    assert counts(at, output_id) == ("waiting", 1, 0, False)
    at.conn.execute("UPDATE outputs SET run_at = moment()")
    at.changed(max_errors=2).step("keep", output_id)

    (letter,) = at.letters(output_id)
    assert (letter["category"], letter["error"]) == ("INTERNAL", "UnexpectedError")
    assert "TypeError" in letter["facts"]["traceback"]


def test_a_failure_that_cannot_be_recorded_is_counted_as_an_error(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception left the step, so that its lease expired and a crash was counted, although the process lived."""
    output_id = waiting(at, at.source.picture())
    facts = {"head": object()}  # cannot be stored as JSON

    def refuse(*_: object) -> None:
        raise InvalidMedia("broken", facts=facts)

    monkeypatch.setattr(validate, "validate_file", refuse)

    at.step("keep", output_id)

    assert counts(at, output_id) == ("waiting", 1, 0, False)
    assert at.row("outputs", output_id)["reason"] == "its failure could not be recorded: TypeError"


@pytest.mark.parametrize("name", ["heartbeat", "thumbnail"])
def test_a_step_without_a_thread_is_handed_back(at: World, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The machine had no process left; the claim stood and counted a crash."""
    output_id, start = waiting(at, at.source.picture()), threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(name):
            raise RuntimeError("can't start new thread")
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        at.step("keep", output_id)

    row = at.row("outputs", output_id)
    assert (row["state"], row["attempt"], row["crashes"]) == ("waiting", 0, 0)
    assert "can't start new thread" in row["reason"]


LIMITED = """
import hashlib, time
from moorage import time_limit
time_limit.enable()
with time_limit.apply_limit(0.5):
    {body}
"""
HANG = "hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)"  # inside C, as a decoder
WAIT = """
    with time_limit.suspend_limit(), time_limit.suspend_limit():
        time.sleep(1.5)
"""


@pytest.mark.parametrize(("body", "status"), [(HANG, -14), (WAIT, 0)], ids=["hangs", "waits for PostgreSQL"])
def test_the_limit_of_a_step_ends_one_that_hangs_and_none_that_waits(body: str, status: int) -> None:
    """Celery's limit ended both, and counted a crash of a step that only waited."""
    done = subprocess.run([sys.executable, "-c", LIMITED.format(body=body)], cwd=ROOT, timeout=120, check=False)

    assert done.returncode == status
