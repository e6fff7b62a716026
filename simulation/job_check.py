"""Checks of job requests: what the stand-in created, the recorded predictions, and the files that readers see."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from db.connection import Connection, Row, fetch_all
from simulation.cases import Case, CaseRun
from simulation.provider.ledger import LedgerIndex, Line

FINAL_STATES: Final = ("succeeded", "partial", "failed", "cancelled")
JUMP_SECONDS: Final = 3600.0  # of the database's clock, ahead or back
JUMP_TOLERANCE_SECONDS: Final = 5.0  # PostgreSQL reads its configuration again a moment after it was told to

Jumps = Sequence[tuple[float, float]]  # of the database's clock: begin and end in Unix seconds

JOBS = """
SELECT id, idempotency_key AS name, state, category, reason,
       EXISTS (SELECT FROM predictions p WHERE p.id = chosen_id AND p.provider = 'placeholder') AS shows_placeholder
  FROM jobs WHERE fallback_chain IS NOT NULL
"""

PREDICTIONS = """
SELECT p.job_id, p.entry, p.provider, p.external_id, p.key_sha256, p.state, p.reason,
       p.submit_uncertain AS is_uncertain,
       ARRAY(SELECT extract(epoch FROM e.at)::float8 FROM events e
              WHERE e.subject = 'prediction' AND e.subject_id = p.id) AS times
  FROM predictions p JOIN jobs j ON j.id = p.job_id
 WHERE j.fallback_chain IS NOT NULL AND p.entry IS NOT NULL ORDER BY p.seq
"""

VISIBLE = """
SELECT v.render_id AS job_id, v.sha256, v.bytes, v.is_placeholder, o.path, p.external_id
  FROM variants v JOIN outputs o ON o.id = v.output_id JOIN predictions p ON p.id = o.prediction_id
  JOIN jobs j ON j.id = v.render_id WHERE j.fallback_chain IS NOT NULL
"""


@dataclass(slots=True)
class JobRequestCounts:
    """Totals of job requests and their predictions. `unseen`: created, and moorage never received the id."""

    sent: int = 0
    kept: int = 0
    placeholders: int = 0
    failed: int = 0
    predictions: int = 0
    uncertain: int = 0
    created: int = 0
    unseen: int = 0

    def __str__(self) -> str:
        jobs = f"{self.sent} sent: {self.kept} kept, {self.placeholders} by placeholder, {self.failed} failed"
        predictions = f"{self.predictions} predictions, {self.uncertain} uncertain"
        return f"{jobs}; {predictions}, {self.created} created and {self.unseen} of them never seen"


@dataclass(slots=True)
class Verdict:
    """The result of a check; `is_clean` is what moorage guarantees."""

    files: int = 0  # that the provider announced and that must be kept or dead-lettered
    acknowledged: int = 0  # webhooks
    kept: int = 0
    job_requests: JobRequestCounts = field(default_factory=JobRequestCounts)
    repeated: int = 0  # attempts
    orphans: int = 0  # objects without a row
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)  # repeated attempts

    @property
    def findings(self) -> list[tuple[str, str]]:
        """Return (kind, message) of each finding."""
        kinds = ("lost", "doubled", "unexpected", "unexplained")
        return [(kind, message) for kind in kinds for message in getattr(self, kind)]

    @property
    def is_clean(self) -> bool:
        return not self.findings


@dataclass(frozen=True, slots=True)
class _Job:
    """A job request with its rows and the ledger's lines."""

    run: CaseRun
    row: Row
    predictions: Sequence[Row]  # without that of the placeholder
    visible: Sequence[Row]
    created: Sequence[Line]
    jumps: Jumps

    @property
    def case(self) -> Case:
        return self.run.case

    @property
    def name(self) -> str:
        return f"{self.case.name} (job {self.row['id']}, {self.row['state']})"

    def of_entry(self, number: int) -> list[Row]:
        return [row for row in self.predictions if row["entry"] == number]

    def was_timed_wrongly(self, rows: Iterable[Row]) -> bool:
        """Return True if a prediction has a time of a clock that was an hour off: its time limit may pass early."""
        return any(is_in_jump(at, self.jumps) for row in rows for at in row["times"])


def check_jobs(
    conn: Connection, index: LedgerIndex, runs: Sequence[CaseRun], verdict: Verdict, jumps: Jumps = ()
) -> None:
    """
    Compare job requests that were acknowledged with what was created and what readers see.

    Args:
        jumps: when the database's clock was an hour off, so that time limits passed early.
    """
    verdict.job_requests.sent = len(runs)
    jobs = group_rows(fetch_all(conn, JOBS), "name")
    predictions, visible = (group_rows(fetch_all(conn, sql), "job_id") for sql in (PREDICTIONS, VISIBLE))
    for run in runs:
        rows = jobs.pop(run.case.name, [])
        if has_one_job(run, rows, verdict):
            prompts = [run.case.prompt(number) for number in range(len(run.case.chain))]
            created = [line for prompt in prompts for line in index.created.get(prompt, ())]
            job_id = rows[0]["id"]
            job = _Job(run, rows[0], predictions.get(job_id, []), visible.get(job_id, []), created, jumps)
            _count(job, verdict.job_requests)
            _check_end(job, index, verdict)
            _check_created(job, index, verdict)
            _check_expected(job, index, verdict)
    verdict.unexpected += [f"job {row['id']} was never requested" for rows in jobs.values() for row in rows]


def is_in_jump(at: float, jumps: Jumps) -> bool:
    """Return True if a recorded time can only be that of a clock that had jumped: it is an hour off a jump."""
    true_times = (at - JUMP_SECONDS, at + JUMP_SECONDS)
    return any(
        began - JUMP_TOLERANCE_SECONDS <= true_time <= ended + JUMP_TOLERANCE_SECONDS
        for began, ended in jumps
        for true_time in true_times
    )


def group_rows(rows: Iterable[Row], *columns: str) -> dict[Any, list[Row]]:
    """Return rows by the value of a column, or by the values of several."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        key = row[columns[0]] if len(columns) == 1 else tuple(row[column] for column in columns)
        groups.setdefault(key, []).append(row)
    return groups


def has_one_job(run: CaseRun, rows: Sequence[Row], verdict: Verdict) -> bool:
    """Return True if a case has one job, the one that was acknowledged."""
    ids = {str(row["id"]) for row in rows} | set(run.job_ids)
    if not rows:
        verdict.lost.append(f"{run.case.name} was acknowledged and has no job")
    elif len(ids) > 1:
        verdict.doubled.append(f"{run.case.name} has {len(ids)} jobs: {', '.join(sorted(ids))}")
    return len(ids) == 1 and bool(rows)


def _count(job: _Job, counts: JobRequestCounts) -> None:
    counts.predictions += len(job.predictions)
    counts.uncertain += sum(row["is_uncertain"] for row in job.predictions)
    counts.created += len(job.created)
    counts.kept += any(not row["is_placeholder"] for row in job.visible)
    counts.placeholders += any(row["is_placeholder"] for row in job.visible)
    counts.failed += job.row["state"] == "failed"


def _check_end(job: _Job, index: LedgerIndex, verdict: Verdict) -> None:
    if job.row["state"] not in FINAL_STATES:
        verdict.lost.append(f"{job.name} has not ended")
    elif any(not row["is_placeholder"] for row in job.visible):
        _check_files(job, index, verdict)
    elif job.case.action != "cancel":
        _check_without_files(job, verdict)
        _check_unused(job, index, verdict)


def _check_files(job: _Job, index: LedgerIndex, verdict: Verdict) -> None:
    """The visible files are those of one prediction of the job: complete, once, byte for byte."""
    external_ids = sorted({str(row["external_id"]) for row in job.visible})
    external_id, paths = external_ids[0], Counter(row["path"] for row in job.visible)
    if any(row["is_placeholder"] for row in job.visible):
        verdict.unexpected.append(f"{job.name} shows a placeholder beside its files")
        return
    if len(external_ids) > 1 or max(paths.values()) > 1:
        verdict.doubled.append(f"{job.name} shows {len(job.visible)} files of {', '.join(external_ids)}")
        return
    if external_id not in {line["prediction"] for line in job.created}:
        verdict.unexpected.append(f"{job.name} shows files of {external_id}, which was not created for it")
        return
    expected = index.files.get(external_id, {})
    if job.row["state"] != "succeeded":
        verdict.unexpected.append(f"{job.name} has files and the reason: {job.row['reason']}")
    missing = expected.keys() - paths.keys()
    verdict.lost += [f"{job.name} does not show {external_id} {path}" for path in missing]
    for row in job.visible:
        line = expected.get(row["path"])
        if line is None or (row["sha256"], row["bytes"]) != (line["sha256"], line["bytes"]):
            verdict.unexpected.append(f"{job.name} shows {external_id} {row['path']} with other bytes than served")


def _check_without_files(job: _Job, verdict: Verdict) -> None:
    """Without files a job has the placeholder that it requested, with a reason, or it has failed with a reason."""
    state, reason = job.row["state"], job.row["reason"] or ""
    if job.case.placeholder:
        if len(job.visible) != 1 or state != "partial" or not job.row["shows_placeholder"] or not reason:
            verdict.unexpected.append(f"{job.name} shows {len(job.visible)} placeholders and the reason: {reason}")
    elif job.visible:
        verdict.unexpected.append(f"{job.name} shows a placeholder that it did not request")
    elif state != "failed" or not job.row["category"] or not reason:
        verdict.unexpected.append(f"{job.name} has no files and the reason: {reason}")


def _check_unused(job: _Job, index: LedgerIndex, verdict: Verdict) -> None:
    """Without files each entry was tried and failed, and no files of a known prediction are left."""
    for number, entry in enumerate(job.case.chain):
        rows = job.of_entry(number)
        if not rows:
            verdict.lost.append(f"{job.name} never reached {job.case.prompt(number)}")
        elif entry.failure is None and not (job.was_timed_wrongly(rows) or any(row["is_uncertain"] for row in rows)):
            result = f"{rows[-1]['state']} {rows[-1]['reason']}"
            verdict.lost.append(f"{job.name}: {job.case.prompt(number)} would have yielded files: {result}")
    for row in job.predictions:
        id_ = row["external_id"]
        is_successful = index.statuses.get(id_) == "succeeded" and index.files.get(id_)
        if is_successful and not job.was_timed_wrongly([row]):
            verdict.lost.append(f"{job.name}: {id_} was created, is known, and is not kept: {row['state']}")


def _check_created(job: _Job, index: LedgerIndex, verdict: Verdict) -> None:
    """Each prediction that was created belongs to one submission; an unseen one to an uncertain submission."""
    for number, entry in enumerate(job.case.chain):
        submitted = [row for row in job.of_entry(number) if row["key_sha256"]]
        created = [line for line in job.created if line["prompt"] == job.case.prompt(number)]
        keys = Counter(line["key"] for line in created if line["key"])
        duplicates = [count for count in keys.values() if count > 1]
        verdict.doubled += [f"{job.name}: {count} predictions were created under one key" for count in duplicates]
        if len(created) > len(submitted):
            message = f"{job.name}: {len(created)} predictions were created by {len(submitted)} submissions"
            verdict.doubled.append(message)
        for line in created:
            if entry.provider != "openai":
                _check_submission(job, line, [row for row in submitted if _has_key(row, line)], verdict)
            elif index.statuses.get(line["prediction"]) == "succeeded" or not any(map(_is_refused, submitted)):
                _check_submission(job, line, submitted, verdict)


def _has_key(row: Row, line: Line) -> bool:
    """Return True if a prediction was submitted with the key in the webhook URL of the ledger's line."""
    return bool(row["key_sha256"] == hashlib.sha256((line["key"] or "").encode()).hexdigest())


def _is_refused(row: Row) -> bool:
    """Return True if the failure was received; OpenAI reports it without the id of what it created."""
    return bool(row["state"] == "failed" and not row["is_uncertain"])


def _check_submission(job: _Job, line: Line, submitted: Sequence[Row], verdict: Verdict) -> None:
    name = f"{job.name}: {line['provider']} {line['prediction']}"
    if any(row["external_id"] == line["prediction"] for row in submitted):
        return
    verdict.job_requests.unseen += 1
    if not submitted:
        verdict.unexpected.append(f"{name} was created by no known submission")
    elif line["provider"] == "replicate" and not job.was_timed_wrongly(submitted):
        verdict.unexpected.append(f"{name} was created and never seen, although its provider lists it")
    elif not any(row["is_uncertain"] and row["external_id"] is None for row in submitted):
        verdict.unexpected.append(f"{name} was created and never seen, and its submission is not uncertain")


def _check_expected(job: _Job, index: LedgerIndex, verdict: Verdict) -> None:
    """Compare the job, as the API shows it, with the case's exact expectation, where it has one."""
    case, view = job.case, job.run.view
    if case.providers is None:
        return
    if job.row["state"] != case.state:
        reason = f" ({job.row['reason']})" if job.row["reason"] else ""
        verdict.unexpected.append(f"{job.name} ended {job.row['state']}{reason}, expected {case.state}")
    providers = tuple(prediction["provider"] for prediction in view["predictions"])
    if providers != case.providers:
        verdict.unexpected.append(f"{job.name} has predictions of {providers}, expected {case.providers}")
    if len(view["variants"]) != case.files:
        verdict.unexpected.append(f"{job.name} shows {len(view['variants'])} files, expected {case.files}")
    for prediction in view["predictions"] if case.action == "cancel" else ():
        if index.statuses.get(prediction["external_id"]) != "canceled":
            verdict.unexpected.append(f"{prediction['provider']} did not stop {prediction['external_id']}")
