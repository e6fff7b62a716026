"""/readyz and `moorage doctor` while a real PostgreSQL answers queries and refuses every webhook."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from cli.commands.doctor import checks
from embedded import unprivileged
from embedded.postgres import Postgres
from moorage.settings import load_settings
from tests.integration import receiver_process as rp

BODY = b'{"id": "ufawqhfynnddngldkgtslldrkq", "status": "processing"}'
PROBES = "SELECT count(*) AS n FROM pg_stat_activity WHERE query LIKE '%moorage probe%' AND state = 'active'"


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with rp.server(tmp_path_factory.mktemp("readiness")) as server:
        yield server


@pytest.fixture(scope="module")
def receiver(postgres: Postgres) -> Iterator[rp.Receiver]:
    with rp.running(postgres.url(), MOORAGE_DEV_ANSWER_SECONDS="3") as process:
        yield process


@contextlib.contextmanager
def altered(postgres: Postgres, setting: str, value: str) -> Iterator[None]:
    """Set a setting of the server for a time; the receiver's connections see it by the next statement."""
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as conn:
        conn.execute(f"ALTER SYSTEM SET {setting} = {value}".encode())
        conn.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            conn.execute("SET default_transaction_read_only = off; SET synchronous_commit = local")
            conn.execute(f"ALTER SYSTEM RESET {setting}".encode())
            conn.execute("SELECT pg_reload_conf()")


def ready(receiver: rp.Receiver) -> tuple[int, str]:
    """Return the status and the body of /readyz."""
    status, _, body = receiver.call("GET", "/readyz")
    return status, body.decode()


def doctored(postgres: Postgres) -> str:
    """Return the line of the doctor about recording webhooks, with its level and advice."""
    results = checks.check_postgres(
        load_settings(_env_file=None, database_url=postgres.url(), broker_url="redis://127.0.0.1:9/0")
    )
    return next(f"{r.level}: {r.what} ({r.advice})" for r in results if "webhooks" in r.what)


def is_refused(receiver: rp.Receiver) -> bool:
    return receiver.post(BODY, webhook_id=f"msg_{time.monotonic_ns()}")[0] == 503


def agree(receiver: rp.Receiver, postgres: Postgres, problem: str) -> None:
    """Check that webhooks are refused, and that readiness and doctor say why."""
    rp.until(lambda: is_refused(receiver))
    rp.until(lambda: ready(receiver)[0] == 503)
    assert problem in ready(receiver)[1]
    line = doctored(postgres)
    assert line.startswith("fail: webhooks cannot be recorded"), line
    assert problem in line


def test_all_is_well(receiver: rp.Receiver, postgres: Postgres) -> None:
    """The probe must leave nothing behind, or it would be ingested."""
    before = rp.rows(postgres.url(), "SELECT count(*) AS n FROM deliveries")

    assert ready(receiver)[0] == 200
    assert doctored(postgres).startswith("ok: webhooks can be recorded")
    assert rp.rows(postgres.url(), "SELECT count(*) AS n FROM deliveries") == before
    assert rp.rows(postgres.url(), "SELECT 1 FROM events WHERE actor = 'probe'") == []


def test_a_read_only_server_is_not_ready(receiver: rp.Receiver, postgres: Postgres) -> None:
    """A failover, or a managed server whose disk is full: every query is answered and every webhook is refused."""
    with altered(postgres, "default_transaction_read_only", "on"):
        agree(receiver, postgres, "PostgreSQL is read-only")

    rp.until(lambda: ready(receiver)[0] == 200)
    assert not is_refused(receiver)


def test_a_locked_table_is_not_ready(receiver: rp.Receiver, postgres: Postgres) -> None:
    """SHARE is what CREATE INDEX takes: reads go on, and a probe that waited would be as stuck as the webhooks."""
    with psycopg.connect(postgres.url()) as conn:
        conn.execute("LOCK TABLE deliveries IN SHARE MODE")
        agree(receiver, postgres, "another transaction holds a lock on deliveries or events")
        conn.rollback()
        rp.until(lambda: ready(receiver)[0] == 200)
        conn.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
        rp.until(lambda: ready(receiver)[0] == 503)

    rp.until(lambda: ready(receiver)[0] == 200)


def test_a_commit_that_waits_for_a_standby_is_not_ready(receiver: rp.Receiver, postgres: Postgres) -> None:
    """A rollback never waits for a standby: only a commit shows that all commits hang."""
    with altered(postgres, "synchronous_standby_names", "'nobody'"):
        rp.until(lambda: is_refused(receiver))
        rp.until(lambda: ready(receiver)[0] == 503)

        assert "did not write within 2 s" in ready(receiver)[1]

    rp.until(lambda: ready(receiver)[0] == 200)


def test_a_full_disk_is_not_ready(receiver: rp.Receiver, postgres: Postgres) -> None:
    """The tables on a real file system without space, the WAL elsewhere: PostgreSQL runs, and no row fits."""
    with tempfile.TemporaryDirectory() as folder, small_tablespace(postgres, Path(folder)):
        with contextlib.suppress(psycopg.errors.DiskFull), psycopg.connect(postgres.url(), autocommit=True) as conn:
            conn.execute("CREATE TABLE filler (body text) TABLESPACE small")
            while True:
                conn.execute("INSERT INTO filler SELECT repeat('x', 1000) FROM generate_series(1, 100)")
        agree(receiver, postgres, "PostgreSQL's disk is full")

        with psycopg.connect(postgres.url()) as conn:
            conn.execute("DROP TABLE filler")
        rp.until(lambda: ready(receiver)[0] == 200)
        assert not is_refused(receiver)


@contextlib.contextmanager
def small_tablespace(postgres: Postgres, folder: Path) -> Iterator[None]:
    """Move `deliveries` to a tablespace on a file system of 2 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root mounts a file system that the server sees")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=False)
    if mounted.returncode != 0:
        pytest.skip("only root mounts a file system that the server sees")
    try:
        folder.chmod(0o755)
        (folder / "data").mkdir()
        if user := unprivileged.find_user():
            os.chown(folder / "data", *user)
        with psycopg.connect(postgres.url(), autocommit=True) as conn:
            conn.execute(f"CREATE TABLESPACE small LOCATION '{folder / 'data'}'".encode())
            conn.execute("ALTER TABLE deliveries SET TABLESPACE small")
            yield
            conn.execute("ALTER TABLE deliveries SET TABLESPACE pg_default")
            conn.execute("CHECKPOINT")  # the files of a dropped table are removed then
            conn.execute("DROP TABLESPACE small")
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def test_a_silent_server_is_not_ready_and_gets_one_probe(receiver: rp.Receiver, postgres: Postgres) -> None:
    """Probes that hang must not take the connections that webhooks need when it wakes up."""
    pid = postgres.pid
    assert pid is not None
    children = [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    for process in (pid, *children):
        os.kill(process, signal.SIGSTOP)
    try:
        rp.until(lambda: ready(receiver)[0] == 503)  # not the answer from before
        started = time.monotonic()
        statuses = [ready(receiver)[0] for _ in range(3)]
        took = time.monotonic() - started
    finally:
        for process in (*children, pid):
            os.kill(process, signal.SIGCONT)

    assert set(statuses) == {503}
    assert took < 30
    rp.until(lambda: ready(receiver)[0] == 200)
    assert not is_refused(receiver)
    rp.until(lambda: rp.rows(postgres.url(), PROBES)[0]["n"] <= 1)  # that of this query
