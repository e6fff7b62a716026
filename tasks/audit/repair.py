"""Repair findings of an audit with the code of steps and sweeps. Deletes nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, cast
from uuid import UUID

from db import jobs, leases, placements, projects
from db.audit import repair
from db.connection import Connection
from db.leases import SUBJECT
from moorage.model import ProjectKey, Wake, WorkTable
from tasks.audit import refetch
from tasks.audit.advice import REPAIRABLE, get_advice
from tasks.audit.findings import Finding
from tasks.jobs import settle
from tasks.step import Deps, SendWakes
from tasks.sweeps import reconcile


@dataclass(frozen=True, slots=True)
class RepairResult:
    """The result for one finding; `message` says what was done or why it was not repaired."""

    finding: Finding
    is_done: bool
    message: str


def repair_findings(deps: Deps, findings: Sequence[Finding], *, actor: str, send: SendWakes) -> Iterator[RepairResult]:
    """Repair findings one by one, each in its own transactions: after an error earlier repairs remain."""
    repairer = _Repairer(deps, actor, send)
    for finding in findings:
        if finding.check in REPAIRABLE:
            yield RepairResult(finding, *repairer.by_code[finding.check.code](finding))
        else:
            yield RepairResult(finding, False, f"not repaired automatically: {get_advice(finding)}")


class _Repairer:
    def __init__(self, deps: Deps, actor: str, send: SendWakes) -> None:
        self._deps, self._actor, self._send = deps, actor, send
        self.by_code: Final[Mapping[str, Callable[[Finding], tuple[bool, str]]]] = {
            "overdue": self._wake,
            "held": self._release_lease,
            "unsettled": self._check_job,
            "missing": self._refetch,
            "size": self._refetch,
            "digest": self._refetch,
            "unplaced": self._place_files,
            "document": self._repair_document,
        }

    def _wake(self, finding: Finding) -> tuple[bool, str]:
        if finding.subject == "job":
            return self._check_job(finding)
        row_id, table = UUID(finding.id), _table(finding)
        step = self._deps.database.run(partial(repair.clear_wake, table=table, row_id=row_id))
        if step is None:
            return True, "it is no longer overdue"
        sent = self._send([Wake(step, row_id)])
        return True, "woken" if sent else "the broker is unavailable; dispatch wakes it"

    def _release_lease(self, finding: Finding) -> tuple[bool, str]:
        table = _table(finding)
        release = partial(leases.release_expired, table=table, actor=self._actor, lease_seconds=0, min_ticks=0)
        while released := self._deps.database.run(release):
            if UUID(finding.id) in released:
                break
        self._wake(finding)
        if self._deps.database.run(partial(repair.is_leased, table=table, row_id=UUID(finding.id))):
            return False, "its lease is live, or PostgreSQL has just started: repeat in a minute"
        return True, "its lease was released and the row woken"

    def _check_job(self, finding: Finding) -> tuple[bool, str]:
        """Settle the job if its last output has ended, and run the reconcile sweep until the job is not due."""
        job_id = UUID(finding.id)
        settle_job = partial(_settle, job_id=job_id, asset_base=self._deps.asset_base, actor=self._actor)
        self._send(self._deps.database.run(settle_job))
        while self._deps.database.run(partial(repair.is_job_due, job_id=job_id)):
            reconcile.reconcile(self._deps, self._actor, self._send)
        state = self._deps.database.run(partial(jobs.lock, job_id=job_id)).state
        return True, f"checked by the reconcile sweep: it is {state}"

    def _refetch(self, finding: Finding) -> tuple[bool, str]:
        return refetch.refetch_output(self._deps, UUID(finding.id))

    def _place_files(self, finding: Finding) -> tuple[bool, str]:
        self._deps.database.run(partial(_place_files, render_id=UUID(finding.id), asset_base=self._deps.asset_base))
        return True, "its files were placed, and the document was recomputed"

    def _repair_document(self, finding: Finding) -> tuple[bool, str]:
        key = ProjectKey.parse(finding.id)
        work = partial(reconcile.repair_document, key=key, asset_base=self._deps.asset_base)
        self._deps.database.run(work)
        return True, "placements and imageUrls were recomputed"


def _table(finding: Finding) -> WorkTable:
    table = finding.check.scope
    if table not in SUBJECT:
        raise LookupError(f"{table} has no leases")
    return cast(WorkTable, table)


def _settle(conn: Connection, job_id: UUID, asset_base: str, actor: str) -> list[Wake]:
    return settle.settle_if_last(conn, jobs.lock(conn, job_id), asset_base=asset_base, actor=actor)


def _place_files(conn: Connection, render_id: UUID, asset_base: str) -> None:
    job = jobs.lock(conn, render_id)
    project = projects.lock(conn, job.project) if job.project else None
    if project is not None:
        placements.place_files(conn, project, job.id, asset_base)
