"""Full disks, on a real tmpfs: no failure of this machine is counted against a file."""

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from PIL import Image

import web.app
from embedded.stack import Stack
from moorage.errors import DiskFull
from tests.integration import full_disk
from tests.integration.core import World, database_of, world

ROOT = Path(__file__).resolve().parents[2]
SIZES = (1, 100, 3000, 7000, 8191, 8192, 9000, 65536)


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "full_disk")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "disk"
    made.mkdir()
    return made


def on_full_disk(folder: Path, command: str, *args: object, **environment: str) -> Any:
    """Run the program where it may mount a tmpfs, and return what it prints."""
    prefix = full_disk.find_command(folder)
    if prefix is None:
        pytest.skip("no tmpfs can be mounted")
    argv = [*prefix, sys.executable, "-m", "tests.integration.full_disk", command, str(folder), *map(str, args)]
    usual = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "MOORAGE_DOTENV": ""}
    done = subprocess.run(argv, cwd=ROOT, env=usual | environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_a_full_disk_is_reported_as_such_whatever_the_size_of_the_chunks(folder: Path) -> None:
    """A buffered file writes its rest again when it is closed, and that error replaced the first one."""
    found = on_full_disk(folder, "spool", *SIZES)

    assert [one["error"] for one in found] == ["DiskFull"] * len(SIZES)


def test_an_upload_on_a_full_disk_gets_503_whatever_the_size_of_its_chunks(folder: Path) -> None:
    """The client may send it again; a 500 would say that the server is broken."""
    found = on_full_disk(folder, "uploads", *SIZES[2:])

    assert [one["error"] for one in found] == ["DiskFull"] * len(SIZES[2:]), found
    assert asyncio.run(web.app._on_unexpected_error(None, DiskFull("upload: full"))).status_code == 503


def test_a_full_disk_is_not_counted_against_a_file(at: World, folder: Path) -> None:
    """A worker's full disk made dead letters of good files."""
    sizes = (1, 3000, 7000, 65536)
    pairs = [f"{size}:{waiting_output(at)}" for size in sizes]

    found = on_full_disk(folder, "keep", *pairs, **environment_of(at))

    for one in found:
        assert [counts(row) for row in one["full"]] == [("waiting", 0, 0)] * 3, one
        assert all("ENOSPC" in row["reason"] for row in one["full"]), one
        assert (one["free"]["state"], one["free"]["crashes"]) == ("kept", 0), one
    assert len(found) == len(sizes)


def test_missing_file_descriptors_are_not_counted_against_a_file(at: World, folder: Path) -> None:
    """Without one the temporary file fails, with one the socket: neither says anything about the file."""
    output_ids = [waiting_output(at) for _ in range(3)]

    found = on_full_disk(folder, "descriptors", *output_ids, **environment_of(at))

    for one in found:
        assert [counts(row) for row in one["full"]] == [("waiting", 0, 0)], one
        assert one["connect"]["error"] == "DatabaseUnavailable", one  # also for a heartbeat, which is retried
        assert "EMFILE" in one["full"][0]["reason"], one
    assert [(one["free"]["state"], one["free"]["crashes"]) for one in found] == [("kept", 0)] * 2


def make_noise() -> bytes:
    noise = io.BytesIO()
    Image.effect_noise((150, 150), 90).save(noise, "PNG")
    return noise.getvalue()


def waiting_output(at: World) -> UUID:
    """Return an output of 20 kB that waits."""
    at.source.files["/files/noise.png"] = (200, make_noise())
    (output_id,) = at.outputs(at.keeping([at.source.url("/files/noise.png")]).job_id)
    return output_id


def counts(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["state"], row["attempt"], row["crashes"]


def environment_of(at: World) -> dict[str, str]:
    """Return the environment of a worker of this world."""
    settings = at.deps.settings
    secret = settings.aws_secret_access_key
    assert secret is not None
    return {
        "DATABASE_URL": at.database_url,
        "CELERY_BROKER_URL": settings.broker_url.get_secret_value(),
        "AWS_ENDPOINT_URL_S3": str(settings.s3_endpoint_url),
        "AWS_ACCESS_KEY_ID": str(settings.aws_access_key_id),
        "AWS_SECRET_ACCESS_KEY": secret.get_secret_value(),
        "MOORAGE_EGRESS_ALLOW": f"127.0.0.1:{at.source.port}",
        "REPLICATE_API_URL": at.source.url(""),
        "REPLICATE_API_TOKEN": "r8_token",
        "REPLICATE_OUTPUT_HOSTS": "127.0.0.1",
    }
