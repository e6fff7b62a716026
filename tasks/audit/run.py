"""The audit: checks the rules of docs/design.md 5 over PostgreSQL and storage. Read-only."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from db.audit import checks as rules
from db.audit.check import Check
from db.connection import current_time
from storage.proofs import Proof
from tasks.audit.findings import Finding, Scan, Tally
from tasks.audit.objects import LISTINGS, DigestSample, ListingScan
from tasks.audit.rows import RowScan
from tasks.step import Deps

DEFAULT_SAMPLE_SIZE: Final = 50


@dataclass(frozen=True, slots=True)
class AuditReport:
    """
    The result of an audit.

    Attributes:
        findings: violations that were still present at the recheck.
        checked: number of things checked: rows by table, objects by scan, `histories`, `bytes` read by a deep audit.
        notes: objects that no row references and that the next orphan sweep may quarantine.
        proof: how storage proves an upload; None if that is not known yet.
        unlisted: by check, the number of first findings beyond the 1,000 that are listed and rechecked.
    """

    findings: list[Finding]
    checked: dict[str, int]
    notes: list[Finding]
    unlisted: dict[Check, int]
    started_at: datetime
    ended_at: datetime
    deep: bool
    second_look_seconds: float
    proof: Proof | None


def run_audit(
    deps: Deps,
    *,
    deep: bool = False,
    second_look_seconds: float | None = None,
    sample: int = DEFAULT_SAMPLE_SIZE,
    report_progress: Callable[[str], None] = lambda _: None,
) -> AuditReport:
    """
    Check every rule, page by page: memory stays bounded and transactions short.

    Rows in flight may break a rule for a moment: only what a recheck finds again is reported. One million rows take
    five minutes on a loaded machine with two cores.

    Args:
        deep: also read every kept object and every recorded body and compare its digest.
        second_look_seconds: age of the last finding at the recheck; a lease by default.
        sample: number of kept files, chosen at random, whose digest is requested from storage; ignored if deep."""
    wait_seconds = deps.settings.lease_seconds if second_look_seconds is None else second_look_seconds
    started_at, tally = deps.database.run(current_time), Tally()
    scans: list[Scan] = [RowScan(deps, name, deep) for name in rules.PAGES]
    scans += [ListingScan(deps, name, deep) for name in LISTINGS]
    scans.append(DigestSample(deps, 0 if deep else sample))
    last_finding = _scan_all(scans, tally, report_progress)
    if last_finding is not None:
        report_progress(f"{len(tally.findings)} findings; waiting {wait_seconds:g} s to check them again")
        time.sleep(max(last_finding + wait_seconds - time.monotonic(), 0.0))
    findings, listed = sorted(_recheck(scans, tally)), Counter(finding.check for finding in tally.findings)
    unlisted = {check: count - listed[check] for check, count in tally.found.items() if count > listed[check]}
    proof = deps.storage.find_known_proof()
    ended_at, checked = deps.database.run(current_time), dict(tally.checked)
    return AuditReport(findings, checked, tally.notes, unlisted, started_at, ended_at, deep, wait_seconds, proof)


def _scan_all(scans: list[Scan], tally: Tally, report_progress: Callable[[str], None]) -> float | None:
    """Add every page to the tally; return the monotonic time of the last finding, None without one."""
    last_finding = None
    for scan in scans:
        after: str | None = ""
        while after is not None:
            known = len(tally.findings)
            after = scan.check_page(tally, after)
            report_progress(f"checked {', '.join(f'{count:,} {name}' for name, count in tally.checked.items())}")
            last_finding = time.monotonic() if len(tally.findings) > known else last_finding
    return last_finding


def _recheck(scans: list[Scan], tally: Tally) -> list[Finding]:
    """Return the findings still present. A recheck may find something else at the same row, which does not count."""
    first = {finding.key for finding in tally.findings}
    present: list[Finding] = []
    for scan in scans:
        findings = [finding for finding in tally.findings if finding.check.scope == scan.name]
        present += [finding for finding in scan.recheck(findings) if finding.key in first] if findings else []
    return present
