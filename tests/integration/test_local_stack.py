"""`moorage up` and the demo: when the local system counts as up."""

import contextlib
import socket
from pathlib import Path

import pytest

from embedded import ports
from embedded.stack import Stack
from simulation.stack import LocalDeployment, build_standin
from storage import s3
from tests.integration import command_line as cli


def test_it_is_up_when_its_buckets_exist(
    stack: Stack, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload may come before the first worker has created them, and returned 503 (NoSuchBucket)."""
    monkeypatch.setattr(LocalDeployment, "_add_processes", lambda self: None)
    monkeypatch.setenv("MOORAGE_DOTENV", "")
    deps = cli.deps(stack, database_url)
    settings = deps.settings.model_copy(update={"s3_public_bucket": "up-public", "s3_private_bucket": "up-private"})
    deps.database.close()
    store = s3.ObjectStore(settings)
    names = {"S3_PUBLIC_BUCKET": "up-public", "S3_PRIVATE_BUCKET": "up-private", "DATABASE_URL": database_url}

    with LocalDeployment(tmp_path, stack=stack, overrides=names):
        assert [list(store.list_objects(bucket, "renders/")) for bucket in ("up-public", "up-private")] == [[], []]


def test_fixed_ports_are_kept_and_replaced_when_in_use(tmp_path: Path) -> None:
    """URLs of stored files must survive a restart; another program on a port must not stop `moorage up`."""
    (first,), (other,) = ports.reserve(1), ports.reserve(1)

    kept = ports.prefer(first)
    with socket.create_server(("127.0.0.1", other)):
        replaced = ports.prefer(other)

    assert kept == first
    assert replaced not in (0, other)


def test_the_environment_is_the_same_after_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal with the exports of the `moorage up` before could not reach its servers and its stand-in."""
    monkeypatch.setattr(LocalDeployment, "_add_processes", lambda self: None)
    monkeypatch.setattr(ports, "_lock", lambda port: True)  # a process would hold the first locks until it ends
    monkeypatch.setenv("MOORAGE_DOTENV", "")

    environments = []
    for _ in range(2):
        with contextlib.ExitStack() as running:
            standin = running.enter_context(build_standin(tmp_path, None).start(tmp_path / "standin"))
            local = running.enter_context(LocalDeployment(tmp_path, standin=standin, fixed_ports=True))
            environments.append(local.environment())

    first, second = environments
    assert {name for name in first if first[name] != second[name]} == set()
