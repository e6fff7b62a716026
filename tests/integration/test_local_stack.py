"""`moorage up` and the demo: when the local system counts as up."""

import contextlib
import fcntl
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.commands.up import up
from embedded import ports
from embedded.stack import Stack
from moorage.errors import ConfigError
from simulation.stack import LocalDeployment
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


@contextlib.contextmanager
def used_by_another_run(folder: Path) -> Iterator[None]:
    """Lock a folder, as a process that runs a stack in it."""
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def test_a_second_up_changes_nothing_in_the_folder(tmp_path: Path) -> None:
    """It started a stand-in and wrote its address into the file that the running processes read."""
    providers = tmp_path / "standin/providers.toml"
    providers.parent.mkdir()
    providers.write_text("of the first")

    with used_by_another_run(tmp_path), pytest.raises(ConfigError, match="servers are already running"):
        up.main(["--folder", str(tmp_path)], standalone_mode=False)

    assert providers.read_text() == "of the first"
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "standin"}
