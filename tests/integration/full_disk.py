"""
A program for tests/integration/test_full_disk.py: runs our code on a full tmpfs, or without file descriptors.

It mounts the tmpfs itself, in a mount namespace of its own, which ends with it. Prints its findings as JSON.
"""

import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

from db.connection import connect
from egress import download, spool
from media.limits import Limits
from moorage.errors import MoorageError
from moorage.local_errors import open_temporary_file
from web.services.upload_spool import SpooledFile
from worker import boot, step_runner

DISK_BYTES = 128 * 1024
FLAGS = (("--mount",), ("--user", "--map-root-user", "--mount"))


def find_command(folder: Path) -> list[str] | None:
    """Return the beginning of a command that may mount a tmpfs; None if neither root nor a user namespace may."""
    if shutil.which("unshare") is None:
        return None
    for flags in FLAGS:
        command = ["unshare", *flags]
        probe = subprocess.run([*command, *_mount(folder)], capture_output=True, timeout=60, check=False)
        if probe.returncode == 0:
            return command
    return None


def _mount(folder: Path) -> list[str]:
    return ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]


def fill(folder: Path, left_bytes: int) -> Path:
    """Fill the disk but for some bytes; return the file to delete."""
    filler = folder / "filler"
    filler.write_bytes(bytes(DISK_BYTES - left_bytes))
    return filler


def outcome(work: Callable[[], object]) -> dict[str, Any]:
    """Return how a call ended."""
    try:
        work()
    except MoorageError as error:
        return {"error": type(error).__name__, "is_internal": error.is_internal, "errno": error.facts.get("errno")}
    except Exception as error:  # noqa: BLE001 (reported to the test)
        return {"error": type(error).__name__, "is_internal": False, "text": str(error)}
    return {"error": None}


def spool_chunks(_folder: Path, *sizes: str) -> list[dict[str, Any]]:
    """Write twice what the disk holds in chunks of each size; the chunk that fails is left in the buffer."""

    def write(size: int) -> None:
        with open_temporary_file() as disk_file:
            file = spool.Spool(disk_file, Limits())
            for _ in range(0, 2 * DISK_BYTES, size):
                file.write(bytes(size))
            file.finish()

    return [outcome(lambda size=int(size): write(size)) for size in sizes]


def receive_uploads(_folder: Path, *sizes: str) -> list[dict[str, Any]]:
    """Receive an upload in chunks of each size, as the API does, and close its file."""

    total = DISK_BYTES + 5000  # the last bytes, which do not fit, stay in a buffer

    async def receive(size: int, executor: ThreadPoolExecutor) -> None:
        spooled = SpooledFile(open_temporary_file(), 10 * DISK_BYTES, executor)
        try:
            for begin in range(0, total, size):
                await spooled.write(bytes(min(size, total - begin)))
            await spooled.flush()
        finally:
            spooled.file.close()

    with ThreadPoolExecutor(1) as executor:
        return [outcome(lambda size=int(size): asyncio.run(receive(size, executor))) for size in sizes]


def keep(output_id: str) -> dict[str, Any]:
    """Run the keep step as a worker does, and return the row."""
    sql = "SELECT state, attempt, crashes, reason FROM outputs WHERE id = %s"
    deps = boot.get_deps()
    deps.database.run(lambda conn: conn.execute("UPDATE outputs SET run_at = moment() WHERE id = %s", [output_id]))
    step_runner._claim_and_run(deps, "keep", UUID(output_id), "node@test/1")
    return deps.database.run(lambda conn: conn.execute(sql, [output_id]).fetchone()) or {}


def keep_in_the_end(output_id: str) -> dict[str, Any]:
    """Run the step until it needs no further attempt: on a busy machine one may fail for its time."""
    for _ in range(20):
        row = keep(output_id)
        if row["state"] != "waiting":
            break
    return row


def keep_on_full_disk(folder: Path, *pairs: str) -> list[dict[str, Any]]:
    """Keep each output (`chunk size:id`) three times while the disk is full, and then when it is not."""
    found = []
    for size, _, output_id in (pair.partition(":") for pair in pairs):
        download.CHUNK_BYTES = int(size)
        filler = fill(folder, 8192)
        full = [keep(output_id) for _ in range(3)]
        filler.unlink()
        found.append({"full": full, "free": keep_in_the_end(output_id)})
    return found


def keep_without_descriptors(_folder: Path, first: str, *others: str) -> list[dict[str, Any]]:
    """Keep each of the others with no, one, two ... free file descriptors, and then with enough."""
    keep(first)  # opens the connections to PostgreSQL and storage
    found, limits = [], resource.getrlimit(resource.RLIMIT_NOFILE)
    for free, output_id in enumerate(others):
        files = [os.open(os.devnull, os.O_RDONLY) for _ in range(free + 1)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(files), limits[1]))
        for file in files:
            os.close(file)
        connected = outcome(lambda: connect(os.environ["DATABASE_URL"]))
        full = [keep(output_id)]
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        found.append({"connect": connected, "full": full, "free": keep_in_the_end(output_id)})
    return found


COMMANDS: dict[str, Callable[..., Any]] = {
    "spool": spool_chunks,
    "uploads": receive_uploads,
    "keep": keep_on_full_disk,
    "descriptors": keep_without_descriptors,
}

if __name__ == "__main__":
    mounted = Path(sys.argv[2])
    subprocess.run(_mount(mounted), check=True)
    os.environ["TMPDIR"] = tempfile.tempdir = str(mounted)
    sys.stdout.write(json.dumps(COMMANDS[sys.argv[1]](mounted, *sys.argv[3:])))
