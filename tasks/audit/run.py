"""The audit: checks the rules of docs/design.md 5 over PostgreSQL and storage. It changes nothing but its own place."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from db.audit import checks as rules
from db.connection import current_time
from tasks.audit import checkpoint
from tasks.audit.checkpoint import AuditProgress, Checkpointer
from tasks.audit.digests import DigestSample
from tasks.audit.findings import Finding, Scan
from tasks.audit.objects import InputScan, ObjectScan
from tasks.audit.rows import RowScan
from tasks.audit.uploads import UploadScan
from tasks.step import Deps

DEFAULT_SAMPLE_SIZE: Final = 50
RECHECK: Final = "second look"  # where an audit is that has gone through all places


@dataclass(frozen=True, slots=True)
class AuditReport:
    """
    What an audit found.

    Attributes:
        findings: what breaks a rule, and still did at the second look.
        checked: how much was looked at, by place: rows by table, `objects`, `inputs`, `uploads`, `sample` (objects
            whose digest storage was asked for), `histories`, and `bytes` re-read by a deep audit.
        notes: what breaks none but is worth knowing: objects that no row names and that the next sweep may take.
        unlisted: by check, how many more the first look found than the 1,000 that are listed and looked at twice.
        interruptions: how often it was interrupted and resumed between its start and its end.
    """

    findings: list[Finding]
    checked: dict[str, int]
    notes: list[Finding]
    unlisted: dict[str, int]
    started_at: datetime
    ended_at: datetime
    interruptions: int
    deep: bool
    second_look_seconds: float


def run_audit(
    deps: Deps,
    *,
    deep: bool = False,
    second_look_seconds: float | None = None,
    sample: int = DEFAULT_SAMPLE_SIZE,
    resume: bool = False,
) -> AuditReport:
    """
    Check every rule, place by place and page by page: memory stays bounded, transactions short.

    Rows in flight look wrong for a moment, so that what is found counts only if a second look still sees it.

    Args:
        deep: also read every kept object and every recorded body again and compare its digest.
        second_look_seconds: how long after the last finding it is looked at again; a lease by default.
        sample: of how many kept files, drawn at random, storage is asked for the digest; none of a deep audit.
        resume: go on where the last audit was interrupted, with its `deep` and `sample`.

    Raises:
        DatabaseUnavailable, StorageUnavailable, StorageRefused: they did not answer; it can be resumed.
        Refused: there is no audit to resume.
    """
    wait = deps.settings.lease_seconds if second_look_seconds is None else second_look_seconds
    progress = checkpoint.resume_progress(deps) if resume else checkpoint.start_progress(deps, deep=deep, sample=sample)
    with checkpoint.save_periodically(deps, progress) as keeper:
        places = _places(deps, progress)
        _first_look(places, progress, keeper)
        keeper.save()
        _pause(progress, wait)
        findings = _second_look(places, progress)
    return AuditReport(
        findings=sorted(findings),
        checked=dict(progress.checked),
        notes=progress.notes,
        unlisted=_unlisted(progress),
        started_at=progress.started_at,
        ended_at=deps.database.run(current_time),
        interruptions=progress.interruptions,
        deep=progress.deep,
        second_look_seconds=wait,
    )


def _places(deps: Deps, progress: AuditProgress) -> Mapping[str, Scan]:
    """Return every place in the order in which it is gone through; the sample is drawn on the way to it."""
    rows: list[Scan] = [RowScan(deps, name, progress.deep) for name in rules.PAGES]
    others: list[Scan] = [
        ObjectScan(deps, progress.deep),
        InputScan(deps),
        UploadScan(deps, progress.deep),
        DigestSample(deps, progress.drawn),
    ]
    return {place.name: place for place in rows + others}


def _first_look(places: Mapping[str, Scan], progress: AuditProgress, keeper: Checkpointer) -> None:
    names = [*places, RECHECK]
    progress.place = progress.place or names[0]
    while progress.place != RECHECK:
        page = places[progress.place].page(progress.after)
        progress.add_page(page)
        progress.after = page.after or ""
        if page.after is None:
            progress.place = names[names.index(progress.place) + 1]
        keeper.save_in_time()


def _pause(progress: AuditProgress, seconds: float) -> None:
    """Wait until the last finding is so old; not at all when there is none."""
    if progress.findings:
        passed = time.monotonic() - progress.found_monotonic if progress.found_monotonic else 0.0
        time.sleep(max(seconds - passed, 0.0))


def _second_look(places: Mapping[str, Scan], progress: AuditProgress) -> list[Finding]:
    """Return what is found again of what was found; at the same thing something else may be wrong by now."""
    first = {finding.key for finding in progress.findings}
    found: list[Finding] = []
    for name, place in places.items():
        mine = [finding for finding in progress.findings if finding.check.split()[1] == name]
        found += [finding for finding in place.recheck(mine) if finding.key in first] if mine else []
    return found


def _unlisted(progress: AuditProgress) -> dict[str, int]:
    listed = Counter(finding.check for finding in progress.findings)
    return {check: count - listed[check] for check, count in progress.found.items() if count > listed[check]}
