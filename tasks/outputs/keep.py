"""The keep step: download, validate and store one output with its thumbnail, then record it."""

import contextlib
import contextvars
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

from db import jobs, leases, outputs, placeholders
from db.connection import BLOCKED_SIGNALS, Connection
from egress import download
from media import validate
from media.validate import ValidatedFile
from moorage import errors, lifecycle, metrics, time_limit
from moorage.failpoints import failpoint
from moorage.formats import FORMATS
from moorage.lifecycle import StoredFileDecision
from moorage.model import FetchedFile, Job, Lease, Media, Output, StoredOutput, Thumbnail, Wake
from moorage.provider_types import PredictionReport
from storage import keys
from storage.errors import ObjectMissing
from tasks import breakers
from tasks.jobs import placeholder, settle
from tasks.outputs import quarantine
from tasks.predictions import reports
from tasks.step import Deps, LeaseGuard, commit_step, require_unlocked

CACHE_IMMUTABLE = "public, max-age=31536000, immutable"
POSTPONE_SECONDS = 30.0  # of a deferred output, while its job stores files of another prediction
CACHE_ONE_DAY = "public, max-age=86400"
_GONE = (errors.OutputGone, errors.DownloadRefused, ObjectMissing)


def run(deps: Deps, lease: Lease, guard: LeaseGuard) -> list[Wake]:
    """Keep one output and settle its job if it was the last; returns wakes. Network I/O is outside transactions."""
    output = lease.output or deps.database.run(lambda conn: outputs.get(conn, lease.row_id))
    if output is None:
        return []
    if not output.is_awaited and not _may_be_stored(deps, output):
        return deps.database.run(lambda conn: _postpone(conn, lease))
    deps.storage.require_connection()  # no download while storage is unavailable
    output = quarantine.forget_missing(deps, lease, output)
    keep_file = _keep_from_source if output.quarantine_key is None else _keep_from_quarantine
    try:
        return keep_file(deps, lease, output, guard)
    except errors.MoorageError as error:
        breakers.note_download_error(deps, output, error)
        # Of other sources the bytes are stored.
        if isinstance(error, errors.FileTooLarge) and output.source_kind == "url" and output.quarantine_key is None:
            raise quarantine.explain_too_large(output, error) from error
        raise


def _may_be_stored(deps: Deps, output: Output) -> bool:
    """Return False while the job stores other files. Raises DatabaseLocked if the result could not be recorded."""
    try:
        job = require_unlocked(deps, output.job_id)
    except errors.DatabaseLocked as error:  # one attempt for all files of the job, not each of them
        postpone = partial(outputs.postpone_waiting, job_id=output.job_id, seconds=error.retry_after or 0.0)
        deps.database.run(postpone)
        raise
    return _is_awaited(job, output) or deps.database.run(partial(_decide_stored, job=job, output=output)) != "wait"


def _keep_from_source(deps: Deps, lease: Lease, output: Output, guard: LeaseGuard) -> list[Wake]:
    try:
        return _keep(deps, lease, output, guard, open_source)
    except errors.OutputGone:
        refreshed = _refresh_url(deps, lease, output, guard)
        if refreshed is None:
            raise
    return _keep(deps, lease, refreshed, guard, open_source)


def _keep_from_quarantine(deps: Deps, lease: Lease, output: Output, guard: LeaseGuard) -> list[Wake]:
    """Keep a file from quarantine. If altered, or still refused, it is downloaded again: the right one may come now."""
    refusal: errors.Permanent
    try:
        return _keep(deps, lease, output, guard, quarantine.open_file)
    except errors.ObjectAltered as error:
        refusal = error
    except errors.InvalidMedia as error:
        if output.source_kind != "url" or output.source is None:
            raise
        refusal = error
    is_altered = isinstance(refusal, errors.ObjectAltered)
    try:
        if is_altered:
            return _keep_from_source(deps, lease, replace(output, quarantine_sha256=None), guard)
        return _keep(deps, lease, output, guard, open_source)
    except (errors.DownloadInterrupted, errors.InvalidMedia, *_GONE) as error:
        if is_altered and not isinstance(error, _GONE):
            raise
        refusal.facts["download"] = str(error)
        raise refusal from error  # the row still names the object: an altered one can be restored for a replay


OpenedFile = contextlib.AbstractContextManager[FetchedFile]
OpenFile = Callable[[Deps, Output, Callable[[], None]], OpenedFile]


def _keep(deps: Deps, lease: Lease, output: Output, guard: LeaseGuard, open_file: OpenFile) -> list[Wake]:
    """Read, validate, store and record a file; if that fails after it was read, its bytes go to quarantine."""
    failpoint("keep.before_download")
    started = time.perf_counter()
    limit = partial(time_limit.apply_limit, deps.settings.constants.step_seconds)  # of each phase
    with (
        limit(),
        open_file(deps, output, guard.check) as fetched,
        limit(),
        quarantine.QuarantineGuard(deps, lease, output, fetched, guard),
    ):
        metrics.PHASE_SECONDS.labels("download").observe(time.perf_counter() - started)
        failpoint("keep.after_download")
        limits = replace(deps.limits, accept=FORMATS) if output.is_placeholder else deps.limits
        started = time.perf_counter()
        examined = validate.validate_file(fetched, limits)
        _observe_validation(examined, time.perf_counter() - started)
        guard.check()
        with metrics.time_phase("store"), limit():
            stored = store_output(deps, lease, output, fetched, examined, guard)
        metrics.STORED_BYTES.inc(fetched.size_bytes + (len(examined.thumb.data) if examined.thumb else 0))
        record = partial(_record, deps=deps, lease=lease, output=output, stored=stored)
        with metrics.time_phase("record"):
            return commit_step(deps, lease, guard, record, point="keep") or []


def _observe_validation(examined: ValidatedFile, seconds: float) -> None:
    """The thumbnail is made from the decoded image, in between."""
    thumb_seconds = examined.thumb.seconds if examined.thumb else 0.0
    metrics.PHASE_SECONDS.labels("validate").observe(seconds - thumb_seconds)
    if examined.thumb:
        metrics.PHASE_SECONDS.labels("thumbnail").observe(thumb_seconds)


def open_source(deps: Deps, output: Output, on_progress: Callable[[], None]) -> OpenedFile:
    if output.is_placeholder:
        return download.spool_bytes(placeholder.load_image(deps, output), deps.limits)
    if output.source_kind == "inline" and output.source_data is not None:
        return download.spool_bytes(output.source_data, deps.limits)
    if output.source is None:
        raise errors.DownloadRefused("the source of this file was removed: submit it again")
    if output.source_kind == "object":
        return spool_object(deps, deps.storage.private_bucket, output.source, on_progress)
    provider = deps.providers.get(output.provider)  # None for URLs of `moorage keep`: any public host, no token
    return download.download_url(
        deps.session,
        output.source,
        limits=deps.limits,
        headers_for=provider.download_headers if provider else lambda _url: {},
        check_url=provider.refusal_reason if provider else lambda _url: None,
        on_progress=on_progress,
    )


@contextlib.contextmanager
def spool_object(deps: Deps, bucket: str, key: str, on_progress: Callable[[], None]) -> Iterator[FetchedFile]:
    with deps.storage.open_object(bucket, key) as opened:
        chunks, extension = opened.iterate_chunks(), download.find_extension(key)
        with download.spool_chunks(
            chunks, deps.limits, on_progress, content_type=opened.content_type, extension=extension
        ) as fetched:
            yield fetched


def _record(conn: Connection, deps: Deps, lease: Lease, output: Output, stored: StoredOutput) -> list[Wake]:
    """Three statements in one round trip: lock the job, end the output if its job waits for it, count the others."""
    lock = conn.queue(jobs.LOCK, {"job_id": output.job_id})  # lock order: job first
    breakers.note_success(conn, deps, breakers.name_host(output))
    end = outputs.queue_end_kept(conn, lease, stored)
    counts = jobs.count_outputs(conn, output.job_id)
    job, base, actor = Job(**lock.rows[0]), deps.asset_base, lease.leased_by
    if end.rows:
        return settle.settle_if_last(conn, job, asset_base=base, actor=actor, counts=counts)
    decision = _decide_stored(conn, job, output)
    if decision == "wait":
        return _postpone(conn, lease)
    outputs.end_kept(conn, lease, stored)  # LeaseLost if another worker owns it, always if the job waits for it
    return settle.reopen(conn, job, output, asset_base=base, actor=actor)


def _is_awaited(job: Job, output: Output) -> bool:
    return output.is_placeholder or output.prediction_id == job.chosen_id


def _decide_stored(conn: Connection, job: Job, output: Output) -> StoredFileDecision:
    is_awaited = _is_awaited(job, output)
    has_placeholder = not is_awaited and job.placeholder and placeholders.is_placeholder_chosen(conn, job.id)
    return lifecycle.on_file_stored(job.state, is_awaited=is_awaited, has_placeholder=has_placeholder)


def _postpone(conn: Connection, lease: Lease) -> list[Wake]:
    reason = "files of another prediction are being stored"
    leases.reschedule(conn, lease, wait_seconds=POSTPONE_SECONDS, reason=reason, counts_as_error=False)
    return []


def poll_fresh_url(deps: Deps, output: Output) -> tuple[PredictionReport, str] | None:
    """Poll the provider for a new URL of a file it no longer serves; None if it has none."""
    provider = deps.providers.get(output.provider)
    if output.source_kind != "url" or provider is None or not provider.can_poll:
        return None
    try:
        report = provider.poll(output.external_id, output.model)
    except errors.Permanent:  # the download's error is more specific; a Transient one leaves the refresh for later
        return None
    urls = [file.url for file in report.outputs if file.path == output.path and not file.problem]
    return (report, urls[0]) if urls and urls[0] and urls[0] != output.source else None


def _refresh_url(deps: Deps, lease: Lease, output: Output, guard: LeaseGuard) -> Output | None:
    """Record a new URL of a file, or that there is none; the provider is polled once."""
    provider = deps.providers.get(output.provider)
    if output.refreshed_at is not None or output.source_kind != "url" or provider is None or not provider.can_poll:
        return None
    fresh = poll_fresh_url(deps, output)
    guard.check()
    url, life_seconds = fresh[1] if fresh else None, provider.output_lifetime_seconds
    expires_at = reports.compute_expiry(fresh[0], lease.claimed_at, life_seconds) if fresh else None
    deps.database.run(lambda conn: outputs.record_refresh(conn, lease, url, expires_at))
    return replace(output, source=url) if url else None


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
    with _put_beside(deps, thumb_key, thumb):
        put_original(deps, key, fetched, media)
        failpoint("keep.after_upload")
    failpoint("keep.after_thumbnail")
    return StoredOutput(media, fetched.size_bytes, fetched.sha256, key, thumb, thumb_key, examined.thumb_missing)


@contextlib.contextmanager
def _put_beside(deps: Deps, key: str | None, thumb: Thumbnail | None) -> Iterator[None]:
    """Store a thumbnail, if there is one, while the block runs. At its end neither upload is under way."""
    if thumb is None or key is None:
        yield
        return
    mask = (signal.SIG_BLOCK, BLOCKED_SIGNALS)  # those are for the main thread
    with ThreadPoolExecutor(1, "thumbnail", signal.pthread_sigmask, mask) as pool:
        try:
            upload = pool.submit(contextvars.copy_context().run, put_thumbnail, deps, key, thumb)
        except RuntimeError as error:  # too many processes
            raise errors.ResourceExhausted(f"this machine: {error}") from error
        yield
        upload.result()


def put_original(deps: Deps, key: str, fetched: FetchedFile, media: Media) -> None:
    """Store a file in the public bucket; a browser downloads what is neither an image nor a video."""
    disposition = "attachment" if media.media == "file" else None
    deps.storage.put(
        deps.storage.public_bucket, key, fetched.file, size=fetched.size_bytes, sha256=fetched.sha256,
        content_type=media.content_type, cache_control=CACHE_IMMUTABLE, disposition=disposition,
    )  # fmt: skip


def put_thumbnail(deps: Deps, key: str, thumb: Thumbnail) -> None:
    deps.storage.put(
        deps.storage.public_bucket, key, thumb.data, size=len(thumb.data), sha256=thumb.sha256,
        content_type="image/webp", cache_control=CACHE_ONE_DAY,
    )  # fmt: skip
