"""`moorage keep` where it cannot begin: each is one line, soon."""

import subprocess
import time
from pathlib import Path

import pytest

from embedded.stack import Stack
from tests.integration import command_line as cli

PROMISED_SECONDS = 5.0


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "one.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    return str(path)


def test_with_no_worker_it_says_so_within_five_seconds(stack: Stack, database_url: str, picture: str) -> None:
    """A command that waits for nobody looks like one that works."""
    env = cli.environment(stack, database_url, CELERY_BROKER_URL=stack.valkey.url(4))
    for _ in range(3):  # on a busy computer the best counts, and the start of Python takes what it takes
        start, _ = timed(env, "nowhere.png")
        took, done = timed(env, picture)
        if took < max(PROMISED_SECONDS, start + 4.0):
            break
    else:
        pytest.fail(f"it took {took:.1f} s, of which {start:.1f} s to start")

    assert done.returncode == 1
    assert done.stderr.startswith("moorage: no worker consumes the queue keep: start one with `moorage worker`")


def timed(env: dict[str, str], name: str) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Return how long `moorage keep` took and how it ended."""
    started = time.monotonic()
    done = cli.run(env, "keep", name)
    return time.monotonic() - started, done


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
