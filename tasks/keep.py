"""Keep: one output, under one lease, with no transaction open: download, validate, thumbnail, store, record."""

import contextlib
from collections.abc import Iterator

from db import jobs, outputs
from db.connect import Connection
from moorage.errors import DownloadRefused, OutputGone, Permanent
from moorage.exchange import Report
from moorage.failpoints import failpoint
from moorage.media import Fetched, Kept
from moorage.model import Lease, Output, Wake
from tasks import apply, download, placeholder, settle, store, validate
from tasks.deps import Deps, Pulse
from tasks.writeback import write_back


def run(deps: Deps, lease: Lease, pulse: Pulse) -> list[Wake]:
    """
    Keep one output and settle its job if it was the last; returns wakes.

    Raises:
        MoorageError: what went wrong, typed by what follows.
    """
    output = deps.database.run(lambda conn: outputs.get(conn, lease.row_id))
    if output is None:
        return []
    deps.blobs.check()  # while storage is away nothing is downloaded
    try:
        kept = _keep(deps, lease, output, pulse)
    except OutputGone:
        fresh = _ask_for_fresh_url(deps, lease, output, pulse)
        if fresh is None:
            raise
        kept = _keep(deps, lease, fresh, pulse)
    failpoint("keep.before_record")
    wakes = write_back(deps, lease, pulse, lambda conn: _record(conn, deps, lease, output, kept))
    failpoint("keep.after_record")
    return wakes or []


def _keep(deps: Deps, lease: Lease, output: Output, pulse: Pulse) -> Kept:
    failpoint("keep.before_download")
    with opened(deps, output, pulse) as fetched:
        failpoint("keep.after_download")
        examined = validate.examine(fetched, deps.limits)
        pulse()
        return store.put(deps, lease, output, fetched, examined, pulse)


@contextlib.contextmanager
def opened(deps: Deps, output: Output, pulse: Pulse) -> Iterator[Fetched]:
    """Give the output's bytes, wherever they come from."""
    if output.is_placeholder:
        with download.inline(placeholder.picture(deps, output), deps.limits) as fetched:
            yield fetched
    elif output.source_kind == "inline" and output.source_data is not None:
        with download.inline(output.source_data, deps.limits) as fetched:
            yield fetched
    elif output.source is None:
        raise DownloadRefused("the source of this file was removed: send it again")
    elif output.source_kind == "object":
        with (
            deps.blobs.open(deps.blobs.private_bucket, output.source) as opened,
            download.from_chunks(opened.chunks(), deps.limits, pulse) as fetched,
        ):
            yield fetched
    else:
        provider = deps.providers.get(output.provider)  # none for a URL that a person named: any public host, no token
        with download.fetch(
            deps.session,
            output.source,
            limits=deps.limits,
            headers_for=provider.download_headers if provider else lambda _url: {},
            allows=provider.allows if provider else lambda _url: None,
            pulse=pulse,
        ) as fetched:
            yield fetched


def _record(conn: Connection, deps: Deps, lease: Lease, output: Output, kept: Kept) -> list[Wake]:
    job = jobs.lock(conn, output.job_id)  # the job first: one lock order
    outputs.end_kept(conn, lease, kept)  # LeaseLost if another worker owns it
    return settle.if_last(conn, job, asset_base=deps.asset_base, actor=lease.leased_by)


def _ask_for_fresh_url(deps: Deps, lease: Lease, output: Output, pulse: Pulse) -> Output | None:
    """Ask the provider once for a fresh URL of a file it no longer serves; None when there is none."""
    provider = deps.providers.get(output.provider)
    if output.refreshed_at is not None or output.source_kind != "url" or provider is None or not provider.can_poll:
        return None
    try:
        report: Report | None = provider.poll(output.external_id, output.model)
    except Permanent:
        report = None  # the download's own error says more; a provider that is away was not asked yet: tried again
    pulse()
    fresh = next((f for f in report.outputs if f.path == output.path), None) if report else None
    url = fresh.url if fresh and not fresh.problem and fresh.url != output.source else None

    def refresh(conn: Connection) -> Output | None:
        expires_at = apply.expiry(report, lease.claimed_at, provider.output_life_seconds) if report and url else None
        outputs.refresh(conn, lease, url, expires_at)
        return outputs.get(conn, output.id)

    renewed = deps.database.run(refresh)
    return renewed if url else None
