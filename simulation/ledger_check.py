"""Compares the stand-in's ledger with PostgreSQL and the bucket: webhooks, jobs, outputs and objects."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from db.connection import Connection, Row, fetch_all
from simulation.cases import CaseRun
from simulation.job_check import Jumps, Verdict, check_jobs, group_rows, has_one_job
from simulation.provider.ledger import LedgerIndex
from storage import keys
from storage.s3 import ObjectStore

# fal.ai's webhooks have no id of their own: they are identified by the prediction, which has only one.
WEBHOOK_IDS = "SELECT CASE provider WHEN 'fal' THEN external_id ELSE webhook_id END AS webhook_id FROM deliveries"

OUTPUTS = """
SELECT p.external_id, o.job_id, o.path, o.state, o.category, o.reason, o.sha256, o.bytes, o.key,
       o.thumb_key, o.thumb_bytes, o.thumb_sha256, v.idx IS NOT NULL AS is_published,
       j.fallback_chain IS NOT NULL AS is_requested
  FROM outputs o JOIN predictions p ON p.id = o.prediction_id JOIN jobs j ON j.id = o.job_id
  LEFT JOIN render_variants v ON v.output_id = o.id
"""

JOBS = """
SELECT j.id, p.external_id, j.state, j.reason
  FROM jobs j JOIN predictions p ON p.job_id = j.id WHERE j.fallback_chain IS NULL
"""

PREDICTIONS = "SELECT external_id FROM predictions WHERE external_id IS NOT NULL"


def check_ledger(
    conn: Connection, blobs: ObjectStore, ledger: dict[str, Any], runs: Sequence[CaseRun], jumps: Jumps | None = None
) -> Verdict:
    """
    Compare what was sent, created and acknowledged with rows and objects.

    Args:
        jumps: when the database's clock was an hour off, from and to in Unix seconds. None: there were no faults, so
            that the check is strict: no response was lost, no prediction is unseen, no object has no row.
    """
    index, is_strict = LedgerIndex.build(ledger), jumps is None
    expected = index.summary["expected"]
    verdict = Verdict(files=len(expected["kept"]) + len(expected["dead"]))
    rows = fetch_all(conn, OUTPUTS)
    registered = [run for run in runs if not run.case.chain]
    requested = [run for run in runs if run.case.chain]
    _check_webhooks(conn, index, verdict, is_strict=is_strict)
    _check_registered_jobs(conn, registered, verdict)
    check_jobs(conn, index, requested, verdict, jumps or ())
    _check_outputs([row for row in rows if not row["is_requested"]], index, registered, verdict)
    _check_objects(rows, blobs, verdict, is_strict=is_strict)
    if is_strict:
        _check_unseen(conn, index, registered, verdict)
    if index.summary["traps"]:
        verdict.unexpected.append("a private address was requested: an egress guard is open")
    return verdict


def _check_webhooks(conn: Connection, index: LedgerIndex, verdict: Verdict, *, is_strict: bool) -> None:
    """An acknowledged webhook must be recorded; one recorded without acknowledgement is legal after a fault."""
    recorded = Counter(row["webhook_id"] for row in fetch_all(conn, WEBHOOK_IDS))
    acknowledged = index.webhook_ids("acknowledged")
    sent = acknowledged if is_strict else acknowledged | index.webhook_ids("unacknowledged")
    verdict.acknowledged = len(acknowledged)
    verdict.lost += [f"webhook {w} was acknowledged and is not recorded" for w in acknowledged if w not in recorded]
    verdict.doubled += [f"webhook {w} has {count} rows" for w, count in recorded.items() if count > 1]
    unsent = "was never acknowledged" if is_strict else "was never sent"
    verdict.unexpected += [f"webhook {w} is recorded and {unsent}" for w in recorded if w not in sent]
    forged = index.summary["wrongly_signed_accepted"]
    verdict.unexpected += [f"webhook {w} was accepted with a wrong signature" for w in forged]


def _check_registered_jobs(conn: Connection, runs: Sequence[CaseRun], verdict: Verdict) -> None:
    jobs = group_rows(fetch_all(conn, JOBS), "external_id")
    for run in runs:
        if run.case.registration == "never":
            continue
        rows = jobs.pop(run.external_id, [])
        if has_one_job(run, rows, verdict) and rows[0]["state"] != run.case.state:
            ended = f"{rows[0]['state']} ({rows[0]['reason']})"
            verdict.unexpected.append(f"{run.case.name} ended {ended}, expected {run.case.state}")
    verdict.unexpected += [f"there is a job for {external_id}, which was not registered" for external_id in jobs]


def _check_outputs(rows: Iterable[Row], index: LedgerIndex, runs: Sequence[CaseRun], verdict: Verdict) -> None:
    """Compare each expected output of registered predictions with its row."""
    discarded = {run.external_id for run in runs if run.case.policy == "discard" and run.case.state == "failed"}
    checked = {run.external_id for run in runs if run.case.registration != "never"}
    by_output = group_rows(rows, "external_id", "path")
    for expected in ("kept", "dead"):
        for line in index.summary["expected"][expected]:
            if line["prediction"] in checked:
                is_discarded = expected == "kept" and line["prediction"] in discarded
                output_rows = by_output.pop((line["prediction"], line["path"]), [])
                _check_output(line, output_rows, "discarded" if is_discarded else expected, verdict)
    verdict.unexpected += [f"{external_id} {path} was never announced" for external_id, path in by_output]


def _check_output(line: Mapping[str, Any], rows: Sequence[Row], expected: str, verdict: Verdict) -> None:
    name = f"{line['prediction']} {line['path']}"
    if not rows:
        verdict.lost.append(f"{name}: no row, expected {expected}")
    elif len(rows) > 1:
        verdict.doubled.append(f"{name}: {len(rows)} rows")
    elif rows[0]["state"] != expected:
        findings = verdict.lost if expected == "kept" else verdict.unexpected
        findings.append(f"{name}: {rows[0]['state']} ({rows[0]['reason']}), expected {expected} ({line['fault']})")
    elif expected == "kept":
        verdict.kept += 1
        if (rows[0]["sha256"], rows[0]["bytes"]) != (line["sha256"], line["bytes"]):
            verdict.unexpected.append(f"{name}: kept with other bytes than were served")
        if not rows[0]["is_published"]:
            verdict.lost.append(f"{name}: kept and not published")


def _check_objects(rows: Iterable[Row], blobs: ObjectStore, verdict: Verdict, *, is_strict: bool) -> None:
    """
    Compare recorded objects with a listing, names and sizes; if strict, also with the digests that storage computed.

    The drill's audit reads every object instead.
    """
    columns = [("key", "bytes", "sha256"), ("thumb_key", "thumb_bytes", "thumb_sha256")]
    recorded = {row[key]: (row[size], row[sha256]) for row in rows for key, size, sha256 in columns if row[key]}
    listed = {item.key: item.size_bytes for item in blobs.list_objects(blobs.public_bucket, keys.RENDER_PREFIX)}
    verdict.lost += [f"object {key}" for key in sorted(recorded.keys() - listed.keys())]
    for key in sorted(recorded.keys() & listed.keys()):
        size, sha256 = recorded[key]
        stat = blobs.head(blobs.public_bucket, key) if is_strict else None
        if listed[key] != size or (is_strict and (stat is None or (stat.size_bytes, stat.sha256) != (size, sha256))):
            verdict.unexpected.append(f"object {key} differs from its row in size or sha256")
    orphans = sorted(listed.keys() - recorded.keys())
    verdict.orphans = len(orphans)
    verdict.unexpected += [f"object {key} has no row" for key in orphans if is_strict]


def _check_unseen(conn: Connection, index: LedgerIndex, runs: Iterable[CaseRun], verdict: Verdict) -> None:
    """Without faults every prediction that was created, and is paid for, must be known."""
    known = {row["external_id"] for row in fetch_all(conn, PREDICTIONS)}
    known |= {run.external_id for run in runs if run.case.registration == "never"}
    unknown = [line for lines in index.created.values() for line in lines if line["prediction"] not in known]
    verdict.unexpected += [f"{line['provider']} created {line['prediction']}, which is unknown" for line in unknown]
