"""Repair findings of an audit with the code of steps and sweeps; store identical bytes again. Deletes nothing."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast
from uuid import UUID

from db import jobs, leases, objects, outputs, placements, projects
from db.audit import repair
from db.connection import Connection, Row
from media import validate
from media.limits import Limits
from media.validate import ValidatedFile
from moorage.errors import DatabaseLocked, FileTooLarge, MoorageError, OutputGone
from moorage.formats import FORMATS
from moorage.model import FetchedFile, Output, ProjectKey, Wake, WorkTable
from storage.errors import ObjectMissing
from tasks.audit.advice import REPAIRABLE, get_advice
from tasks.audit.findings import Finding
from tasks.audit.objects import compute_digest
from tasks.jobs import settle
from tasks.outputs import keep
from tasks.step import Deps, SendWakes, skip_after_error
from tasks.sweeps import reconcile


@dataclass(frozen=True, slots=True)
class RepairResult:
    """The result for one finding; `message` says what was done or why it was not repaired."""

    finding: Finding
    is_done: bool
    message: str


def repair_findings(deps: Deps, findings: Sequence[Finding], *, actor: str, send: SendWakes) -> Iterator[RepairResult]:
    """Repair findings one by one, each in its own transactions. Only an outage ends the repair of the others."""
    repairer = _Repairer(deps, actor, send)
    for finding in findings:
        is_done, message = False, f"not repaired automatically: {get_advice(finding)}"
        if finding.check in REPAIRABLE:
            with skip_after_error("repair.failed", finding.id) as failures:
                is_done, message = repairer.repair(finding)
            for error in failures:
                if isinstance(error, MoorageError) and error.is_internal and not isinstance(error, DatabaseLocked):
                    raise error
                message = f"it failed: {type(error).__name__}: {error}"
        yield RepairResult(finding, is_done, message)


@dataclass(frozen=True, slots=True)
class _Repairer:
    deps: Deps
    actor: str
    send: SendWakes

    def repair(self, finding: Finding) -> tuple[bool, str]:
        run, asset_base = self.deps.database.run, self.deps.asset_base
        match finding.check.code:
            case "overdue" if finding.subject != "job":
                return self._wake(finding)
            case "overdue" | "unsettled":
                return self._check_job(UUID(finding.id))
            case "held":
                return self._release_lease(finding)
            case "unplaced":
                run(partial(_place_files, render_id=UUID(finding.id), asset_base=asset_base))
                return True, "its files were placed, and the document was recomputed"
            case "document":
                run(partial(reconcile.repair_document, key=ProjectKey.parse(finding.id), asset_base=asset_base))
                return True, "placements and imageUrls were recomputed"
            case _:
                return refetch_output(self.deps, UUID(finding.id))

    def _wake(self, finding: Finding) -> tuple[bool, str]:
        table, row_id = cast(WorkTable, finding.check.scope), UUID(finding.id)
        step = self.deps.database.run(partial(repair.clear_wake, table=table, row_id=row_id))
        if step is None:
            return True, "it is no longer overdue"
        sent = self.send([Wake(step, row_id)])
        return True, "woken" if sent else "the broker is unavailable; dispatch wakes it"

    def _release_lease(self, finding: Finding) -> tuple[bool, str]:
        table, row_id = cast(WorkTable, finding.check.scope), UUID(finding.id)
        release = partial(leases.release_expired, table=table, actor=self.actor, lease_seconds=0, min_ticks=0)
        if not self.deps.database.run(partial(release, row_id=row_id)):
            return False, "its lease ended meanwhile or is live, or PostgreSQL has just started: repeat in a minute"
        self._wake(finding)
        return True, "its lease was released and the row woken"

    def _check_job(self, job_id: UUID) -> tuple[bool, str]:
        """Settle the job if its last output has ended; if it is due, check it as the reconcile sweep does."""
        run, base, actor = self.deps.database.run, self.deps.asset_base, self.actor
        self.send(run(lambda conn: settle.settle_if_last(conn, jobs.lock(conn, job_id), asset_base=base, actor=actor)))
        self.send(run(partial(reconcile.check_job, deps=self.deps, job_id=job_id, actor=actor)))
        state = run(partial(jobs.lock, job_id=job_id)).state
        return True, f"checked as by the reconcile sweep: it is {state}"


def _place_files(conn: Connection, render_id: UUID, asset_base: str) -> None:
    job = jobs.lock(conn, render_id)
    project = projects.lock(conn, job.project) if job.project else None
    if project is not None:
        placements.place_files(conn, project, job, asset_base)


def _ignore_progress() -> None:
    """A repair holds no lease that a download could lose."""


class DigestMismatch(MoorageError):
    """The source has other bytes now."""


def refetch_output(deps: Deps, output_id: UUID) -> tuple[bool, str]:
    """
    Restore the objects of a kept output; returns True if they match their row now, and what was done or failed.

    The original is read from storage if it is intact (then only the thumbnail is restored), otherwise from its recorded
    URL, and if that has expired from a new URL of the provider.
    """
    output = deps.database.run(lambda conn: outputs.get(conn, output_id))
    rows = deps.database.run(lambda conn: objects.get_objects(conn, "objects", [output_id]))
    named = {row["key"]: row for row in rows if row["is_required"]}
    if output is None or output.key not in named:
        return True, "it is no longer kept"
    original, thumb = named[output.key], named.get(output.thumb_key)
    deps = replace(deps, limits=_lift_limits(deps.limits, original["bytes"]))
    try:
        with keep.spool_object(deps, deps.storage.public_bucket, original["key"], _ignore_progress) as fetched:
            return _restore_thumbnail(deps, thumb, _validate(deps, fetched, original))
    except (ObjectMissing, DigestMismatch, FileTooLarge):
        return _restore_from_source(deps, output, original, thumb)


def _lift_limits(limits: Limits, size_bytes: int) -> Limits:
    """Return limits of a file that was accepted under others, and is decoded only if it has its recorded digest."""
    image, video = max(limits.image_max_bytes, size_bytes), max(limits.video_max_bytes, size_bytes)
    limits = replace(limits, accept=FORMATS, image_max_bytes=image, video_max_bytes=video)
    return replace(limits, image_max_pixels=sys.maxsize, animation_max_pixels=sys.maxsize)


def _validate(deps: Deps, fetched: FetchedFile, original: Row) -> ValidatedFile:
    if fetched.sha256 != original["sha256"]:
        raise DigestMismatch(f"it has the digest {fetched.sha256} now, not {original['sha256']}")
    return validate.validate_file(fetched, deps.limits)


def _restore_from_source(deps: Deps, output: Output, original: Row, thumb: Row | None) -> tuple[bool, str]:
    if output.source is None and output.source_data is None:
        return False, "it cannot be fetched again: its source was deleted when it was kept"
    try:
        return _fetch(deps, output, original, thumb)
    except OutputGone:
        fresh = keep.poll_fresh_url(deps, output)
        if fresh is None:
            raise
        return _fetch(deps, replace(output, source=fresh[1]), original, thumb)


def _fetch(deps: Deps, output: Output, original: Row, thumb: Row | None) -> tuple[bool, str]:
    with keep.open_source(deps, output, _ignore_progress) as fetched:
        examined = _validate(deps, fetched, original)
        keep.put_original(deps, original["key"], fetched, examined.media)
    is_restored, message = _restore_thumbnail(deps, thumb, examined)
    return is_restored, f"fetched again, byte for byte; {message}"


def _restore_thumbnail(deps: Deps, row: Row | None, examined: ValidatedFile) -> tuple[bool, str]:
    if row is None or compute_digest(deps, deps.storage.public_bucket, row["key"], Counter()) == row["sha256"]:
        return True, "its objects match its row"
    if examined.thumb is None or examined.thumb.sha256 != row["sha256"]:
        return False, "its original is intact, but a new thumbnail of it differs from the recorded one"
    keep.put_thumbnail(deps, row["key"], examined.thumb)
    return True, "its thumbnail was stored again"
