"""The keep step: download, validate and store one output with its thumbnail, then record it."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import BinaryIO

from db import jobs, outputs
from db.connection import Connection
from egress import download
from media import validate
from media.validate import ValidatedFile
from moorage.errors import (
    DatabaseLocked,
    DownloadInterrupted,
    DownloadRefused,
    FileTooLarge,
    InvalidMedia,
    OutputGone,
    Permanent,
)
from moorage.failpoints import failpoint
from moorage.model import FetchedFile, Lease, Output, StoredOutput, Wake
from moorage.provider_types import PredictionReport
from storage import keys
from tasks.jobs import placeholder, settle
from tasks.outputs import quarantine
from tasks.predictions import reports
from tasks.step import Deps, LeaseGuard, commit_step, require_unlocked

CACHE_IMMUTABLE = "public, max-age=31536000, immutable"
CACHE_ONE_DAY = "public, max-age=86400"


def run(deps: Deps, lease: Lease, guard: LeaseGuard) -> list[Wake]:
    """Keep one output and settle its job if it was the last; returns wakes. Network I/O is outside transactions."""
    output = deps.database.run(lambda conn: outputs.get(conn, lease.row_id))
    if output is None:
        return []
    try:
        require_unlocked(deps, output.job_id)
    except DatabaseLocked as error:  # one attempt for all files of the job, not each of them
        postpone = partial(outputs.postpone_waiting, job_id=output.job_id, seconds=error.retry_after or 0.0)
        deps.database.run(postpone)
        raise
    deps.storage.check_connection()  # no download while storage is unavailable
    output = quarantine.forget_missing(deps, lease, output)
    try:
        if output.quarantine_key is None:
            wakes = _keep_from_source(deps, lease, output, guard)
        else:
            wakes = _keep_from_quarantine(deps, lease, output, guard)
    except FileTooLarge as error:
        if output.source_kind != "url" or output.quarantine_key is not None:  # its bytes are stored
            raise
        raise quarantine.explain_too_large(output, error) from error
    failpoint("keep.after_record")
    return wakes or []


def _keep_from_source(deps: Deps, lease: Lease, output: Output, guard: LeaseGuard) -> list[Wake] | None:
    try:
        return _keep(deps, lease, output, guard, open_source)
    except OutputGone:
        refreshed = _refresh_url(deps, lease, output, guard)
        if refreshed is None:
            raise
    return _keep(deps, lease, refreshed, guard, open_source)


def _keep_from_quarantine(deps: Deps, lease: Lease, output: Output, guard: LeaseGuard) -> list[Wake] | None:
    """Keep a file from quarantine. If it is still refused, download it again: the server may send the right one now."""
    try:
        return _keep(deps, lease, output, guard, quarantine.open_file)
    except InvalidMedia as error:
        if output.source_kind != "url" or output.source is None:
            raise
        refusal = error
    try:
        return _keep(deps, lease, output, guard, open_source)
    except (OutputGone, DownloadInterrupted, DownloadRefused, InvalidMedia) as error:
        refusal.facts["download"] = str(error)
        raise refusal from error


OpenFile = Callable[[Deps, Output, Callable[[], None]], contextlib.AbstractContextManager[FetchedFile]]


def _keep(deps: Deps, lease: Lease, output: Output, guard: LeaseGuard, open_file: OpenFile) -> list[Wake] | None:
    """Read, validate, store and record a file; if that fails after it was read, its bytes go to quarantine."""
    failpoint("keep.before_download")
    with (
        open_file(deps, output, guard.check) as fetched,
        quarantine.QuarantineGuard(deps, lease, output, fetched, guard),
    ):
        failpoint("keep.after_download")
        examined = validate.validate_file(fetched, deps.limits)
        guard.check()
        stored = store_output(deps, lease, output, fetched, examined, guard)
        failpoint("keep.before_record")
        return commit_step(deps, lease, guard, lambda conn: _record(conn, deps, lease, output, stored))


@contextlib.contextmanager
def open_source(deps: Deps, output: Output, on_progress: Callable[[], None]) -> Iterator[FetchedFile]:
    if output.is_placeholder:
        with download.spool_bytes(placeholder.load_image(deps, output), deps.limits) as fetched:
            yield fetched
    elif output.source_kind == "inline" and output.source_data is not None:
        with download.spool_bytes(output.source_data, deps.limits) as fetched:
            yield fetched
    elif output.source is None:
        raise DownloadRefused("the source of this file was removed: submit it again")
    elif output.source_kind == "object":
        with (
            deps.storage.open_object(deps.storage.private_bucket, output.source) as opened,
            download.spool_chunks(opened.iterate_chunks(), deps.limits, on_progress) as fetched,
        ):
            yield fetched
    else:
        provider = deps.providers.get(output.provider)  # None for URLs of `moorage keep`: any public host, no token
        with download.download_url(
            deps.session,
            output.source,
            limits=deps.limits,
            headers_for=provider.download_headers if provider else lambda _url: {},
            check_url=provider.refusal_reason if provider else lambda _url: None,
            on_progress=on_progress,
        ) as fetched:
            yield fetched


def _record(conn: Connection, deps: Deps, lease: Lease, output: Output, stored: StoredOutput) -> list[Wake]:
    job = jobs.lock(conn, output.job_id)  # lock order: job first
    outputs.end_kept(conn, lease, stored)  # LeaseLost if another worker owns it
    return settle.settle_if_last(conn, job, asset_base=deps.asset_base, actor=lease.leased_by)


def _refresh_url(deps: Deps, lease: Lease, output: Output, guard: LeaseGuard) -> Output | None:
    """Poll the provider once for a new URL of a file it no longer serves; None if it has none."""
    provider = deps.providers.get(output.provider)
    if output.refreshed_at is not None or output.source_kind != "url" or provider is None or not provider.can_poll:
        return None
    try:
        report: PredictionReport | None = provider.poll(output.external_id, output.model)
    except Permanent:
        report = None  # the error of the download is more specific; a Transient error leaves the refresh for later
    guard.check()
    file = next((f for f in report.outputs if f.path == output.path), None) if report else None
    url = file.url if file and not file.problem and file.url != output.source else None
    expires_at = None
    if report and url:
        expires_at = reports.compute_expiry(report, lease.claimed_at, provider.output_lifetime_seconds)
    deps.database.run(lambda conn: outputs.record_refresh(conn, lease, url, expires_at))
    return deps.database.run(lambda conn: outputs.get(conn, output.id)) if url else None


def store_output(
    deps: Deps, lease: Lease, output: Output, fetched: FetchedFile, examined: ValidatedFile, guard: LeaseGuard
) -> StoredOutput:
    """
    Upload the original byte for byte, and its thumbnail; returns the facts to record.

    Objects that are not recorded (lost lease, crash) are left to the orphan sweep: the token in their key proves that
    they cannot be recorded later.
    """
    media, thumb = examined.media, examined.thumb
    key = keys.build_original_key(output.job_id, output.idx, fetched.sha256, lease.token, media.extension)
    thumb_key = keys.build_thumbnail_key(output.job_id, output.idx, fetched.sha256, lease.token) if thumb else None
    guard.ensure_held()
    failpoint("keep.before_upload")
    put_public(deps, key, fetched.file, fetched.size_bytes, fetched.sha256, media.content_type, CACHE_IMMUTABLE)
    failpoint("keep.after_upload")
    if thumb is not None and thumb_key is not None:
        guard.ensure_held()
        put_public(deps, thumb_key, thumb.data, len(thumb.data), thumb.sha256, "image/webp", CACHE_ONE_DAY)
        failpoint("keep.after_thumbnail")
    return StoredOutput(media, fetched.size_bytes, fetched.sha256, key, thumb, thumb_key, examined.thumb_missing)


def put_public(
    deps: Deps, key: str, body: BinaryIO | bytes, size: int, sha256: str, content_type: str, cache_control: str
) -> None:
    storage, bucket = deps.storage, deps.storage.public_bucket
    storage.put(bucket, key, body, size=size, sha256=sha256, content_type=content_type, cache_control=cache_control)
