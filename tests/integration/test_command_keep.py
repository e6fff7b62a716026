"""`moorage keep` where it cannot begin, or does not wait to the end: each is one line."""

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from db.connection import Connection
from embedded.stack import Stack
from tasks.step import Deps
from tests.integration import command_line as cli
from worker import boot, publish

WORKER = {"keep@here": [{"name": "keep"}]}


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "one.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    return str(path)


@pytest.fixture
def keep(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs the command with what workers answer, one answer after the other, and no worker."""

    def run(*args: str, answers: Iterator[dict[str, Any]] | None = None) -> Result:
        given = iter([WORKER]) if answers is None else answers
        control = types.SimpleNamespace(inspect=lambda **_: types.SimpleNamespace(active_queues=lambda: next(given)))
        app = types.SimpleNamespace(control=control)
        monkeypatch.setitem(sys.modules, "worker.celery", types.SimpleNamespace(app=app))
        monkeypatch.delitem(sys.modules, "cli.commands.keep", raising=False)
        module = importlib.import_module("cli.commands.keep")
        monkeypatch.setattr(module, "app", app)
        return CliRunner().invoke(module.keep, args)

    monkeypatch.setattr(boot, "get_deps", lambda: deps)
    monkeypatch.setattr(publish, "publish_wakes", len)
    return run


def test_with_no_worker_it_ends_with_the_remedy(stack: Stack, database_url: str, picture: str) -> None:
    """A command that waits for nobody looks like one that works."""
    env = cli.environment(stack, database_url, CELERY_BROKER_URL=stack.valkey.url(4))

    done = cli.run(env, "keep", picture, "--timeout", "0")

    assert done.returncode == 1
    assert done.stderr == (
        "moorage: no worker consumes the queue keep, waited 0 s: start one with `moorage worker`, or run `moorage up`\n"
    )


def test_a_worker_that_starts_later_is_waited_for(keep: Any, conn: Connection) -> None:
    """Right behind `moorage up` the command ended with "no worker consumes the queue keep"."""
    answers: Iterator[dict[str, Any]] = iter([{}, {"quick@here": [{"name": "quick"}]}, WORKER])

    keep("https://files.example/a.png", "--timeout", "0.5", answers=answers)

    assert next(answers, None) is None
    assert conn.execute("SELECT count(*) AS n FROM outputs").fetchall() == [{"n": 1}]


def test_after_the_time_out_the_job_continues_in_the_background(keep: Any, conn: Connection) -> None:
    """The command waited ten minutes in silence for an address that does not answer."""
    done = keep("https://files.example/a.png", "--timeout", "0")

    (job,) = conn.execute("SELECT id, state FROM jobs").fetchall()
    assert (done.exit_code, job["state"]) == (1, "keeping")
    assert done.stderr.splitlines()[-1] == f"job {job['id']} continues in the background: moorage show {job['id']}"


def test_ctrl_c_ends_the_waiting_and_names_the_job(
    keep: Any, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is committed: it cannot be taken back by ending the command, and its id is needed to find it."""

    def interrupt(_wakes: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "publish_wakes", interrupt)
    done = keep("https://files.example/a.png")

    (job,) = conn.execute("SELECT id FROM jobs").fetchall()
    assert done.exit_code == 1
    assert f"job {job['id']} continues in the background" in done.stderr


def test_a_broker_that_is_away_is_told_in_one_line(stack: Stack, database_url: str, picture: str) -> None:
    """A traceback would only hide what to do."""
    env = cli.environment(stack, database_url, CELERY_BROKER_URL=f"redis://:verysecret@{cli.nowhere()}/0")

    done = cli.run(env, "keep", picture)

    assert done.returncode == 1
    assert done.stderr == "moorage: the broker does not answer: start it, or correct CELERY_BROKER_URL\n"


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("nowhere.png", "nowhere.png is neither a URL (https://...), nor a file, nor a folder"),
        ("x" * 300, f"{'x' * 300} cannot be read: File name too long"),
        ("ftp://host/a.png", "ftp://host/a.png is neither a URL (https://...), nor a file, nor a folder"),
    ],
)
def test_a_name_that_leads_to_nothing_is_told_in_one_line(
    stack: Stack, database_url: str, named: str, says: str
) -> None:
    """The commonest mistake is a wrong name."""
    done = cli.run(cli.environment(stack, database_url), "keep", named)

    assert (done.returncode, done.stderr) == (1, f"moorage: {says}\n")


@pytest.mark.parametrize(
    ("url", "problem"),
    [("http://files.example/a.png", "http: is not allowed"), ("https://10.0.0.1/a.png", "not a public address")],
)
def test_a_url_that_can_never_be_downloaded_is_refused(keep: Any, conn: Connection, url: str, problem: str) -> None:
    """As by POST /v1/keep; it became a job whose file was dead a moment later."""
    done = keep(url)

    assert problem in str(done.exception)
    assert conn.execute("SELECT count(*) AS n FROM jobs").fetchall() == [{"n": 0}]
