"""`moorage status` and `moorage doctor` while servers accept connections and never answer, or a table is locked."""

import contextlib
import errno
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cli.commands.doctor.checks import CheckResult, ok
from cli.commands.doctor.command import BackgroundCheck
from db.connection import Connection
from db.reports.status import read_overview
from embedded.server import Server
from embedded.stack import Stack
from moorage.settings import Settings, load_settings
from tasks.step import Deps
from tests.integration import command_line as cli

BUSY_SECONDS = 30  # at most 5 on an idle computer; this only proves that nothing waits without a limit
TABLES = (
    "deliveries",
    "jobs",
    "predictions",
    "outputs",
    "notifications",
    "ticks",
    "dead_letters",
    "pauses",
    "storage_use",
)


@contextlib.contextmanager
def stopped(*servers: Server) -> Iterator[None]:
    """Stop the processes of servers by SIGSTOP: connections are still accepted, by the kernel."""
    pids: list[int] = []
    try:
        for server in servers:
            assert server.pid is not None
            children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text(encoding="utf-8")
            for pid in (server.pid, *map(int, children.split())):
                os.kill(pid, signal.SIGSTOP)
                pids.append(pid)
        yield
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGCONT)


def run(env: dict[str, str], *args: str) -> tuple[int, str, str]:
    """Run a command and return its exit status and output; it ends soon."""
    started = time.monotonic()
    done = cli.run(env, *args)
    assert time.monotonic() - started < BUSY_SECONDS
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("silent", ["postgres", "valkey", "all"])
def test_status_and_doctor_report_while_a_server_is_silent(
    stack: Stack, database_url: str, deps: Deps, silent: str
) -> None:
    """Both are asked when something hangs: waiting with it tells nobody what."""
    env = cli.environment(stack, database_url)
    servers = {"postgres": stack.postgres, "valkey": stack.valkey, "seaweedfs": stack.seaweedfs}
    names = list(servers) if silent == "all" else [silent]

    with stopped(*(servers[name] for name in names)):
        status, shown, error = run(env, "status", "--json")
        doctor, told, _ = run(env, "doctor", "--json")

    found = json.loads(shown)
    failures = [check["what"] for check in json.loads(told) if check["level"] == "fail"]
    assert doctor == 1
    assert status == (1 if "postgres" in names else 0), error
    assert ("postgres" in names) == found["postgresql"].startswith("unavailable") == ("jobs" not in found)
    assert ("valkey" in names) == (found["broker"].startswith("unavailable: "))
    assert ("seaweedfs" in names) == found["storage"].startswith("unavailable: no answer")
    expected = {"postgres": "PostgreSQL", "valkey": "the broker", "seaweedfs": "storage"}
    for name, start in expected.items():
        assert (name in names) == any(what.startswith(start) for what in failures), failures


def test_a_locked_table_hides_only_what_it_contains(stack: Stack, database_url: str, deps: Deps) -> None:
    """A forgotten transaction is what the operator looks for; the screen must not wait for it."""
    made = cli.register_one(deps)
    env = cli.environment(stack, database_url)
    with psycopg.connect(database_url) as conn:
        conn.execute("LOCK TABLE outputs, dead_letters IN ACCESS EXCLUSIVE MODE")

        _, screen, error = run(env, "status")
        checked, verdict, _ = run(env, "status", "--check")
        status, shown, _ = run(env, "status", "--json")

    found = json.loads(shown)
    assert (status, checked, error) == (0, 1, "")
    assert "  warning: could not be read: " in screen
    assert "  warning: could not be read: " in verdict
    unread = [problem["text"] for problem in found["problems"] if problem["code"] == "facts_unread"]
    assert [
        text.startswith("could not be read: oldest due: outputs, leases: outputs, outputs, ") for text in unread
    ] == [True]
    assert "dead letters  locked" in screen
    assert found["jobs"] == {"open": 1}, made
    assert found["predictions"] == {"running": 1}
    assert found["outputs"] is None
    assert {"outputs", "dead letters", "oldest due: outputs", "leases: outputs"} <= set(found["locked"])


@pytest.mark.parametrize("table", TABLES)
def test_an_overview_names_what_is_locked(conn: Connection, database_url: str, table: str) -> None:
    """Whichever table it is, all parts that do not read it are there."""
    free = read_overview(conn, ["replicate"])
    with psycopg.connect(database_url) as holder:
        holder.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        with conn.transaction():
            overview = read_overview(conn, ["replicate"])

    assert free["locked"] == []
    assert overview["locked"]
    assert len(overview["locked"]) < 11
    assert [name for name in overview["oldest_due_seconds"] if name == table] == []


def test_a_check_that_breaks_off_is_a_failure_in_one_line(stack: Stack) -> None:
    """A traceback of its thread, and an answer that is missing, do not say that this machine has no file free."""

    def check(_settings: Settings) -> Iterator[CheckResult]:
        yield ok("begun")
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    settings = load_settings(_env_file=None, database_url="postgresql://", broker_url=stack.valkey.url())
    begun, failed = BackgroundCheck("the disk", check, settings).list_results()

    assert begun.level == "ok"
    assert (failed.level, failed.what) == ("fail", "the disk: OSError: [Errno 24] Too many open files")
