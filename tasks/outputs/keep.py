"""Keep: one output, under one lease, with no transaction open: download, validate, thumbnail, store, record."""

import contextlib
from collections.abc import Iterator

from db import jobs, outputs
from db.connection import Connection
from egress import download
from media import validate
from media.validate import ValidatedFile
from moorage.errors import DownloadRefused, OutputGone, Permanent
from moorage.failpoints import failpoint
from moorage.model import FetchedFile, Lease, Output, StoredOutput, Wake
from moorage.provider_types import PredictionReport
from storage import keys
from tasks.jobs import placeholder, settle
from tasks.predictions import reports
from tasks.step import Deps, LeaseGuard, commit_step

CACHE_IMMUTABLE = "public, max-age=31536000, immutable"
CACHE_ONE_DAY = "public, max-age=86400"


def run(deps: Deps, lease: Lease, pulse: LeaseGuard) -> list[Wake]:
    """
    Keep one output and settle its job if it was the last; returns wakes.

    Raises:
        MoorageError: what went wrong, typed by what follows.
    """
    output = deps.database.run(lambda conn: outputs.get(conn, lease.row_id))
    if output is None:
        return []
    deps.storage.check_connection()  # while storage is away nothing is downloaded
    try:
        kept = _keep(deps, lease, output, pulse)
    except OutputGone:
        fresh = _ask_for_fresh_url(deps, lease, output, pulse)
        if fresh is None:
            raise
        kept = _keep(deps, lease, fresh, pulse)
    failpoint("keep.before_record")
    wakes = commit_step(deps, lease, pulse, lambda conn: _record(conn, deps, lease, output, kept))
    failpoint("keep.after_record")
    return wakes or []


def _keep(deps: Deps, lease: Lease, output: Output, pulse: LeaseGuard) -> StoredOutput:
    failpoint("keep.before_download")
    with open_source(deps, output, pulse) as fetched:
        failpoint("keep.after_download")
        examined = validate.validate_file(fetched, deps.limits)
        pulse()
        return store_output(deps, lease, output, fetched, examined, pulse)


@contextlib.contextmanager
def open_source(deps: Deps, output: Output, pulse: LeaseGuard) -> Iterator[FetchedFile]:
    """Give the output's bytes, wherever they come from."""
    if output.is_placeholder:
        with download.spool_bytes(placeholder.load_image(deps, output), deps.limits) as fetched:
            yield fetched
    elif output.source_kind == "inline" and output.source_data is not None:
        with download.spool_bytes(output.source_data, deps.limits) as fetched:
            yield fetched
    elif output.source is None:
        raise DownloadRefused("the source of this file was removed: send it again")
    elif output.source_kind == "object":
        with (
            deps.storage.open_object(deps.storage.private_bucket, output.source) as opened,
            download.spool_chunks(opened.iterate_chunks(), deps.limits, pulse) as fetched,
        ):
            yield fetched
    else:
        provider = deps.providers.get(output.provider)  # none for a URL that a person named: any public host, no token
        with download.download_url(
            deps.session,
            output.source,
            limits=deps.limits,
            headers_for=provider.download_headers if provider else lambda _url: {},
            check_url=provider.refusal_reason if provider else lambda _url: None,
            on_progress=pulse,
        ) as fetched:
            yield fetched


def _record(conn: Connection, deps: Deps, lease: Lease, output: Output, kept: StoredOutput) -> list[Wake]:
    job = jobs.lock(conn, output.job_id)  # the job first: one lock order
    outputs.end_kept(conn, lease, kept)  # LeaseLost if another worker owns it
    return settle.settle_if_last(conn, job, asset_base=deps.asset_base, actor=lease.leased_by)


def _ask_for_fresh_url(deps: Deps, lease: Lease, output: Output, pulse: LeaseGuard) -> Output | None:
    """Ask the provider once for a fresh URL of a file it no longer serves; None when there is none."""
    provider = deps.providers.get(output.provider)
    if output.refreshed_at is not None or output.source_kind != "url" or provider is None or not provider.can_poll:
        return None
    try:
        report: PredictionReport | None = provider.poll(output.external_id, output.model)
    except Permanent:
        report = None  # the download's own error says more; a provider that is away was not asked yet: tried again
    pulse()
    fresh = next((f for f in report.outputs if f.path == output.path), None) if report else None
    url = fresh.url if fresh and not fresh.problem and fresh.url != output.source else None

    def refresh(conn: Connection) -> Output | None:
        expires_at = (
            reports.compute_expiry(report, lease.claimed_at, provider.output_lifetime_seconds)
            if report and url
            else None
        )
        outputs.record_refresh(conn, lease, url, expires_at)
        return outputs.get(conn, output.id)

    renewed = deps.database.run(refresh)
    return renewed if url else None


def store_output(
    deps: Deps, lease: Lease, output: Output, fetched: FetchedFile, examined: ValidatedFile, pulse: LeaseGuard
) -> StoredOutput:
    """
    Upload the original byte for byte and its thumbnail; returns the facts to record.

    What is uploaded and then not recorded (a lost lease, a crash) is deleted by nobody here: the orphan sweep knows
    from the token in the key that it can never be recorded later.
    """
    media, thumb = examined.media, examined.thumb
    key = keys.build_original_key(output.job_id, output.idx, fetched.sha256, lease.token, media.extension)
    thumb_key = keys.build_thumbnail_key(output.job_id, output.idx, fetched.sha256, lease.token) if thumb else None
    pulse.before_write()
    failpoint("keep.before_upload")
    fetched.file.seek(0)
    deps.storage.put(
        deps.storage.public_bucket,
        key,
        fetched.file,
        size=fetched.size_bytes,
        sha256=fetched.sha256,
        content_type=media.content_type,
        cache_control=CACHE_IMMUTABLE,
    )
    failpoint("keep.after_upload")
    if thumb is not None and thumb_key is not None:
        pulse.before_write()
        deps.storage.put(
            deps.storage.public_bucket,
            thumb_key,
            thumb.data,
            size=len(thumb.data),
            sha256=thumb.sha256,
            content_type="image/webp",
            cache_control=CACHE_ONE_DAY,
        )
        failpoint("keep.after_thumbnail")
    return StoredOutput(
        media=media,
        bytes=fetched.size_bytes,
        sha256=fetched.sha256,
        key=key,
        thumb=thumb,
        thumb_key=thumb_key,
        thumb_missing=examined.thumb_missing,
    )
