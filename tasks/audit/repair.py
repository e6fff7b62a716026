"""The repair of what an audit found, through the code of steps and sweeps; it deletes nothing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, cast
from uuid import UUID

from db import jobs, leases, projects
from db.audit import repair
from db.connection import Connection
from db.leases import SUBJECT
from moorage.model import Wake, WorkTable
from tasks.audit import refetch
from tasks.audit.advice import REPAIRABLE, get_advice
from tasks.audit.findings import Finding
from tasks.jobs import settle
from tasks.step import Deps
from tasks.sweeps import reconcile

SendWakes = Callable[[list[Wake]], int]


@dataclass(frozen=True, slots=True)
class RepairResult:
    """What became of a finding: whether it was repaired, and how or why not."""

    finding: Finding
    is_done: bool
    message: str


def repair_findings(deps: Deps, findings: Sequence[Finding], *, actor: str, send: SendWakes) -> Iterator[RepairResult]:
    """
    Repair findings one after the other, each in transactions of its own, and say what was done.

    Args:
        send: publishes wakes; one that is dropped is sent again by dispatch.

    Raises:
        DatabaseUnavailable, StorageUnavailable, StorageRefused: what was done stays done.
    """
    hand = _Hand(deps, actor, send)
    for finding in findings:
        if finding.check in REPAIRABLE:
            done, what = hand.repair(finding)
            yield RepairResult(finding, done, what)
        else:
            yield RepairResult(finding, False, f"not repaired by itself: {get_advice(finding)}")


class _Hand:
    def __init__(self, deps: Deps, actor: str, send: SendWakes) -> None:
        self._deps, self._actor, self._send = deps, actor, send
        self._by_code: Final[Mapping[str, Callable[[Finding], tuple[bool, str]]]] = {
            "overdue": self._overdue,
            "held": self._held,
            "unsettled": self._look_at_job,
            "missing": self._refetch,
            "size": self._refetch,
            "digest": self._refetch,
            "unplaced": self._place,
            "document": self._compute,
        }

    def repair(self, finding: Finding) -> tuple[bool, str]:
        return self._by_code[finding.check.code](finding)

    def _overdue(self, finding: Finding) -> tuple[bool, str]:
        if finding.subject == "job":
            return self._look_at_job(finding)
        row_id, table = UUID(finding.id), _table(finding)
        step = self._deps.database.run(partial(repair.clear_wake, table=table, row_id=row_id))
        if step is None:
            return True, "it is no longer overdue"
        sent = self._send([Wake(step, row_id)])
        return True, "woken" if sent else "its wake is forgotten; the broker is away, dispatch wakes it"

    def _held(self, finding: Finding) -> tuple[bool, str]:
        table = _table(finding)
        while freed := self._deps.database.run(partial(leases.release_expired, table=table, actor=self._actor)):
            if UUID(finding.id) in freed:
                break
        self._overdue(finding)
        if self._deps.database.run(partial(repair.is_leased, table=table, row_id=UUID(finding.id))):
            return False, "its lease lives, or PostgreSQL has just started: run it again in a minute"
        return True, "its lease is freed, and the row woken"

    def _look_at_job(self, finding: Finding) -> tuple[bool, str]:
        """Settle it if its last output has ended, and take what is due as the sweep does."""
        job_id = UUID(finding.id)
        settling = partial(_settle, job_id=job_id, asset_base=self._deps.asset_base, actor=self._actor)
        self._send(self._deps.database.run(settling))
        while self._deps.database.run(partial(repair.is_job_due, job_id=job_id)):
            reconcile.reconcile(self._deps, self._actor, self._send)
        state = self._deps.database.run(partial(jobs.lock, job_id=job_id)).state
        return True, f"looked at as a sweep does: it is {state}"

    def _refetch(self, finding: Finding) -> tuple[bool, str]:
        return refetch.refetch_output(self._deps, UUID(finding.id))

    def _place(self, finding: Finding) -> tuple[bool, str]:
        self._deps.database.run(partial(_place, render_id=UUID(finding.id), asset_base=self._deps.asset_base))
        return True, "its files are placed, and the document is computed"

    def _compute(self, finding: Finding) -> tuple[bool, str]:
        self._deps.database.run(partial(_compute, project_id=finding.id, asset_base=self._deps.asset_base))
        return True, "placements and imageUrls are computed anew"


def _table(finding: Finding) -> WorkTable:
    table = finding.check.scope
    if table not in SUBJECT:
        raise LookupError(f"{table} has no leases")
    return cast(WorkTable, table)


def _settle(conn: Connection, job_id: UUID, asset_base: str, actor: str) -> list[Wake]:
    return settle.settle_if_last(conn, jobs.lock(conn, job_id), asset_base=asset_base, actor=actor)


def _place(conn: Connection, render_id: UUID, asset_base: str) -> None:
    job = jobs.lock(conn, render_id)
    project = projects.lock(conn, job.project_id) if job.project_id else None
    if project is not None:
        projects.place_files(conn, project, job.id, asset_base)


def _compute(conn: Connection, project_id: str, asset_base: str) -> None:
    project = projects.lock(conn, project_id)
    if project is not None:
        projects.update_image_urls(conn, project, asset_base)
