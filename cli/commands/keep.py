"""`moorage keep`: store URLs and local files as one job, with the same workers."""

import contextlib
import hashlib
import mimetypes
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import click
from rich.console import Console

from cli.console import Progress, print_json
from db import jobs, outputs
from egress import kept_urls
from media import sniff
from moorage import ids
from moorage.errors import ConfigError
from moorage.model import JobDescription
from moorage.provider_types import OutputFile
from moorage.settings import Settings
from storage import keys
from tasks.jobs import create
from tasks.step import Deps
from worker import boot, broker_errors, publish
from worker.celery import app

PING_SECONDS: Final = 2.0
WORKER_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True)
class FileSource:
    name: str
    url: str | None = None
    path: Path | None = None


@click.command()
@click.argument("what", nargs=-1, required=True, metavar="URL|FILE|FOLDER...")
@click.option("--owner", default="cli", show_default=True, help="Owner of the render.")
@click.option("--timeout", type=click.FloatRange(min=0), default=120.0, show_default=True, metavar="SECONDS",
              help="How long to wait; the job continues in the background.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def keep(what: Sequence[str], owner: str, timeout: float, as_json: bool) -> None:
    """
    Store URLs, files or folders as one job; wait for the workers and print the URL of each file.

    Exit status 1 unless all files are kept, also after --timeout; Ctrl-C ends the waiting only.
    """
    until = time.monotonic() + timeout
    console, deps = Console(highlight=False, soft_wrap=True, stderr=as_json), boot.get_deps()
    with _report_unreadable():
        sources = list(_find_sources(what, deps.settings, console))
    if not sources:
        raise ConfigError(
            "nothing to keep: name URLs, files of an accepted format (MOORAGE_ACCEPT), or folders of them"
        )
    with Progress("looking for a worker") as progress:
        _await_worker(min(timeout, WORKER_SECONDS), progress)
    named: list[OutputFile] = []
    with _report_unreadable(), Progress("copying files") as progress:
        for number, source in enumerate(sources):
            progress.update(f"copying file {number + 1} of {len(sources)}")
            key = spool_file(deps, source.path) if source.path else None
            named.append(OutputFile(f"file[{number}]", url=source.url, object_key=key))
    description = JobDescription(owner=owner, kind="mixed")
    job = create.create_keep_job(
        deps.database, deps.settings, deps.providers, description, named, actor="cli", notify=False
    )
    job_id, rows = job.job_id, None
    try:
        publish.publish_wakes(job.wakes)
        with Progress(f"job {job_id}: waiting for {len(sources)} files") as progress:
            rows = _wait_until_settled(deps, job_id, until, progress)
    except KeyboardInterrupt:
        click.echo(err=True)
    if rows is None:
        click.echo(f"job {job_id} continues in the background: moorage show {job_id}", err=True)
        raise SystemExit(1)
    urls = [deps.storage.build_asset_url(row["key"]) if row["key"] else None for row in rows]
    files = [{**row, "source": x.name, "url": url} for x, row, url in zip(sources, rows, urls, strict=True)]
    kept = sum(row["state"] == "kept" for row in rows)
    _print_result(console, job_id, files, kept, as_json)
    raise SystemExit(0 if kept == len(rows) else 1)


@contextlib.contextmanager
def _report_unreadable() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {error.strerror}") from error


def _await_worker(seconds: float, progress: Progress) -> None:
    """Wait for a worker of the queue `keep`: it may be starting, or answer late."""
    until = time.monotonic() + seconds
    while True:
        try:
            replies = app.control.inspect(timeout=PING_SECONDS).active_queues() or {}
        except broker_errors.BROKER_ERRORS as error:
            raise ConfigError(": ".join(broker_errors.explain(error))) from error
        if any(queue["name"] == "keep" for queues in replies.values() for queue in queues or ()):
            return
        if time.monotonic() > until:
            remedy = "start one with `moorage worker`, or run `moorage up`"
            raise ConfigError(f"no worker consumes the queue keep, waited {seconds:g} s: {remedy}")
        progress.update("waiting for a worker of the queue keep")


def spool_file(deps: Deps, path: Path) -> str:
    """Upload a local file to the private bucket, with its digest; returns its key."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    upload_id = ids.uuid7()
    extension = path.suffix.lstrip(".").lower()
    is_valid = extension.isalnum() and extension.isascii() and len(extension) <= 8
    key = keys.build_input_key(upload_id, extension if is_valid else "bin")
    content_type = guess_content_type(path)
    with path.open("rb") as file:
        deps.storage.put(deps.storage.private_bucket, key, file, size=size, sha256=sha256, content_type=content_type)
    return key


def guess_content_type(path: Path) -> str:
    return mimetypes.guess_type(path.name)[0] or "application/octet-stream"


def _find_sources(what: Iterable[str], settings: Settings, console: Console) -> Iterable[FileSource]:
    for item in what:
        path, url = Path(item), item.strip()
        if url.lower().startswith(("http://", "https://")):
            if problem := kept_urls.find_problem(settings, url):
                raise ConfigError(f"{url} cannot be kept: {problem}")
            yield FileSource(url, url=url)
        elif path.is_dir():
            yield from _find_media(path, console)
        elif path.is_file():
            yield FileSource(item, path=path)
        else:
            raise ConfigError(f"{item} is neither a URL (https://...), nor a file, nor a folder")


def _find_media(folder: Path, console: Console) -> Iterable[FileSource]:
    """Yield the files of known formats in a folder, by their first bytes; print the files that are skipped."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.startswith("."):
            with path.open("rb") as file:
                kind = sniff.detect_format(file.read(sniff.HEAD_BYTES))
            named = sniff.find_named_format(path.suffix.lstrip("."), guess_content_type(path))
            if kind is None and named is None:
                console.print(f"skipped: {path} is of no known format", style="dim")
            else:
                yield FileSource(str(path), path=path)


def _wait_until_settled(deps: Deps, job_id: UUID, until: float, progress: Progress) -> list[dict[str, Any]] | None:
    """Return the outputs; None if the job is not settled in time."""
    while True:
        job = deps.database.run(lambda conn: jobs.get_with_render(conn, job_id))  # first: then its files are final
        rows = deps.database.run(lambda conn: outputs.list_by_job(conn, job_id))
        ended = sum(row["ended_at"] is not None for row in rows)
        retried = [row["reason"] for row in rows if row["state"] == "waiting" and row["reason"]]
        hint = f"  (retrying: {retried[0]})" if retried else ""
        progress.update(f"job {job_id}: {ended} of {len(rows)} files{hint}")
        if job is not None and job["settled_at"] is not None:
            return rows
        if time.monotonic() > until:
            return None
        time.sleep(0.2)


def _print_result(console: Console, job_id: UUID, files: Sequence[dict[str, Any]], kept: int, as_json: bool) -> None:
    if as_json:
        fields = ("source", "url", "state", "reason", "sha256", "bytes", "key", "thumb_key")
        listed = [{name: file[name] for name in fields} for file in files]
        print_json({"job_id": job_id, "render_id": job_id if kept else None, "files": listed})
        return
    for file in files:
        size = f" {file['width_px']}x{file['height_px']}" if file["width_px"] else ""
        media = f"{file['format']}{size} {file['bytes']:,} B" if file["key"] else ""
        console.print(f"{file['state']:6} {file['source']}  {media}", markup=False)
        console.print(f"       {file['url'] or file['reason']}", markup=False)
    console.print(f"{kept} of {len(files)} kept as render {job_id}")
