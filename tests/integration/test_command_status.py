"""`moorage status` against real servers, and with each of them away."""

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from db import lock_holders
from db.connection import Connection, connect
from db.reports import metrics
from embedded.stack import Stack
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration.core import wait_until
from tests.support import fork_server
from worker import inspect_cluster

PERIODIC = {"dispatch", "reconcile", "drain", "discard", "counts"}


def answered(env: dict[str, str], *args: str, missing: str) -> subprocess.CompletedProcess[str]:
    """Return the first status in which the broker answered in its three seconds: a busy computer may miss them."""
    deadline = time.monotonic() + 60
    while missing in (done := cli.run(env, "status", *args)).stdout and time.monotonic() < deadline:
        pass
    return done


def test_an_empty_system_is_shown(stack: Stack, database_url: str, deps: Deps) -> None:
    """The first screen of a fresh installation must say what is not there, not fail."""
    done = answered(cli.environment(stack, database_url), missing="workers  unknown")

    assert done.returncode == 0, done.stderr
    assert "none answered in 3 s: start one with moorage worker" in done.stdout
    assert "replicate" in done.stdout
    assert "storage  ok" in done.stdout
    assert [line.split()[-1] for line in done.stdout.splitlines() if "every" in line] == ["late"] * 5


def test_live_rows_leases_and_ticks_are_told(stack: Stack, database_url: str, deps: Deps, conn: Connection) -> None:
    """What is live and who holds it is what a person on call looks for first."""
    made = cli.register_one(deps)
    conn.execute(
        "UPDATE predictions SET lease_token = gen_random_uuid(), leased_by = 'node/task', attempt = 1, crashes = 1,"
        " leased_until = moment() + interval '20 s', run_at = moment()"
    )
    conn.execute("INSERT INTO ticks (sweep, slot, started_at) VALUES ('dispatch', 1, moment() + interval '10 min')")
    conn.execute("INSERT INTO ticks (sweep, slot) VALUES ('counts', 1)")
    conn.execute("INSERT INTO ticks (sweep, slot, started_at) VALUES ('drain', 1, moment() - interval '1 h')")

    done = answered(cli.environment(stack, database_url), "--json", missing='"queues": null')

    found = json.loads(done.stdout)
    assert found["jobs"] == {"open": 1}
    assert found["predictions"] == {"running": 1}
    assert [(held["id"], held["leased_by"]) for held in found["leases"]] == [(str(made.prediction_id), "node/task")]
    assert found["leases"][0]["renewed_seconds_ago"] >= 10
    late = {sweep["sweep"]: sweep["is_late"] for sweep in found["sweeps"] if "period_seconds" in sweep}
    # The one in the future was claimed before a clock was set back: it says nothing of the present.
    expected = {"dispatch": True, "counts": False, "reconcile": True, "drain": True, "discard": True}
    assert {name: late[name] for name in expected} == expected
    assert set(found["queues"]) == set(inspect_cluster.ALL_QUEUES)


def test_the_storage_used_is_told_by_owner_and_bucket(
    stack: Stack, database_url: str, deps: Deps, conn: Connection
) -> None:
    """Who fills the bucket is the first question when the bill comes."""
    conn.execute(
        "INSERT INTO storage_use (bucket, owner, objects, bytes, rank)"
        " VALUES ('public', 'ada', 7, 1234567, 1), ('private', 'ben', 1, 5, 1), ('public', '', 3, 4, 0)"
    )
    env = cli.environment(stack, database_url)

    screen = cli.run(env, "status").stdout
    found = json.loads(cli.run(env, "status", "--json").stdout)

    assert "Storage used, counted" in screen
    assert all(word in screen for word in ("ada", "1,234,567", "ben", "(others)"))
    told = [(use["bucket"], use["owner"], use["objects"], use["bytes"]) for use in found["storage_use"]]
    assert told == [("public", "ada", 7, 1234567), ("private", "ben", 1, 5), ("public", "(others)", 3, 4)]


def test_a_broker_and_a_storage_that_are_away_cost_no_answer(stack: Stack, database_url: str) -> None:
    """Status is asked exactly when something is away."""
    nowhere = cli.nowhere()
    env = cli.environment(
        stack, database_url, CELERY_BROKER_URL=f"redis://{nowhere}/0", AWS_ENDPOINT_URL_S3=f"http://{nowhere}"
    )

    started = time.monotonic()
    done = cli.run(env, "status", "--json")
    took = time.monotonic() - started

    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert (found["queues"], found["workers"]) == (None, None)
    assert found["broker"] == "unavailable: the broker does not answer"
    assert found["storage"].startswith("unavailable: ")
    assert took < 30  # 3 s for the questions; the rest is the start of Python on a busy computer


def test_without_postgres_it_says_so_in_one_line(stack: Stack, database_url: str) -> None:
    """Nothing can be told without PostgreSQL; a traceback would only hide that."""
    env = cli.environment(stack, f"postgresql://x:y@{cli.nowhere()}/z")

    done = cli.run(env, "status")

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "PostgreSQL connection failed" in done.stderr


def test_a_worker_that_answers_is_named_and_beat_is_none(
    stack: Stack, database_url: str, deps: Deps, conn: Connection
) -> None:
    """Beat answers a ping too: taken for a worker, it would hide that nobody works."""
    # A broker of its own, apart from what other tests leave behind. Each sweep is due when beat starts; a drain waits
    # for the answers of workers, and one each second would occupy the worker until the ticks of others expire.
    env = cli.environment(stack, database_url, CELERY_BROKER_URL=stack.valkey.url(3), MOORAGE_DEV_DRAIN_SECONDS="5")
    commands = (("worker", "-c", "1", "-n", "only@here", "-l", "error"), ("beat", "-l", "error"))
    with Path(os.devnull).open("wb") as null:
        processes = [
            fork_server.popen(["-m", "cli.main", *args], env=env, cwd=cli.ROOT, stdout=null, stderr=null)
            for args in commands
        ]
    try:
        ticked = (
            "SELECT DISTINCT sweep FROM ticks"  # cheaper than a `doctor` each time; one with a cron line may be due
        )
        wait_until(lambda: {row["sweep"] for row in conn.execute(ticked).fetchall()} >= PERIODIC, seconds=150)
        deadline = time.monotonic() + 150
        told = ""
        while "beat runs" not in told or "only@here" not in told:
            assert time.monotonic() < deadline, told
            told = cli.run(env, "doctor").stdout
        found: dict[str, Any] = {"workers": []}
        while not found["workers"]:  # a busy computer may miss the second in which a worker is to answer
            assert time.monotonic() < deadline, found
            found = json.loads(cli.run(env, "status", "--json").stdout)
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(120)

    assert found["workers"] == ["only@here"]
    assert found["consumers"] == {"quick": 1, "keep": 1, "sweeps": 1}
    wait_until(lambda: conn.execute(metrics.QUEUE_CONSUMERS.encode()).fetchall())
    assert "ok    workers: only@here" in told
    assert not any(line.startswith("fail") for line in told.splitlines()), told


def test_a_session_that_holds_locks_is_named_first(stack: Stack, database_url: str, conn: Connection) -> None:
    """Rows that wait for somebody's console are otherwise a riddle."""
    with contextlib.closing(connect(database_url, name="console")) as holder, contextlib.ExitStack() as ended:
        eyes = ended.enter_context(contextlib.closing(connect(database_url)))
        holder.execute("BEGIN; LOCK TABLE projects")
        waiting = threading.Thread(target=lambda: conn.execute("BEGIN; LOCK TABLE projects; ROLLBACK"))
        waiting.start()
        ended.callback(waiting.join)
        ended.callback(holder.rollback)
        wait_until(lambda: lock_holders.list_holders(eyes))

        text = cli.run(cli.environment(stack, database_url), "status").stdout

    first = text.partition("Providers")[0]
    assert re.match(r"\d problems\n", first)
    assert "(console) holds locks; 1 sessions wait" in first
    assert "Sessions that hold locks" in first
    assert re.search(r"console +moorage +idle in transaction .* 1 sessions", text)
