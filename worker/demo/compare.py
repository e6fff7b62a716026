"""Three sources that do not know each other, compared: the stand-in's ledger, PostgreSQL, a listing of the bucket."""

from collections.abc import Sequence
from typing import Any

from db.connect import Connection, many
from storage import keys
from storage.s3 import Blobs
from worker.demo.drive import Started

WEBHOOK_IDS = "SELECT webhook_id FROM deliveries ORDER BY webhook_id"

OUTPUTS = """
SELECT p.external_id, o.path, o.state, o.sha256, o.bytes, o.key, o.thumb_key, o.thumb_bytes, o.thumb_sha256, o.reason
  FROM outputs o JOIN predictions p ON p.id = o.prediction_id
"""

JOBS = """
SELECT p.external_id, j.id, j.state, j.category, j.reason FROM jobs j JOIN predictions p ON p.job_id = j.id
"""

VARIANTS = "SELECT count(*) AS count, count(DISTINCT output_id) AS outputs FROM render_variants"


def differences(conn: Connection, blobs: Blobs, ledger: dict[str, Any], started: Sequence[Started]) -> list[str]:
    """Return where the three sources differ, a line each; an empty list is the proof."""
    summary = ledger["summary"]
    rows = many(conn, OUTPUTS)
    return [
        *_webhooks(conn, summary),
        *_jobs(conn, started),
        *_outputs(rows, summary, started),
        *_bucket(rows, blobs),
        *(["the guard is open: a private address was visited"] if summary["traps"] else []),
    ]


def _webhooks(conn: Connection, summary: dict[str, Any]) -> list[str]:
    recorded = {row["webhook_id"] for row in many(conn, WEBHOOK_IDS)}
    acknowledged = set(summary["acknowledged"])
    found = [f"webhook {w} was answered 2xx and is not recorded" for w in sorted(acknowledged - recorded)]
    found += [f"webhook {w} is recorded and was never answered 2xx" for w in sorted(recorded - acknowledged)]
    return found + [f"webhook {w} was wrongly signed and taken" for w in summary["wrongly_signed_accepted"]]


def _jobs(conn: Connection, started: Sequence[Started]) -> list[str]:
    states = {row["external_id"]: row for row in many(conn, JOBS)}
    found = []
    for one in started:
        row = states.pop(one.external_id, None)
        state = row["state"] if row else None
        if state != one.case.state:
            why = f" ({row['reason']})" if row and row["reason"] else ""
            found.append(f"job {one.case.name!r} ended {state}{why}, expected {one.case.state}")
    return found + [f"there is a job for {external_id}, which nobody started" for external_id in states]


def _outputs(rows: Sequence[dict[str, Any]], summary: dict[str, Any], started: Sequence[Started]) -> list[str]:
    ours = {one.external_id for one in started if one.job_id is not None}
    discarded = {one.external_id for one in started if one.case.partial == "discard" and one.case.state == "failed"}
    found: list[str] = []
    have = {(row["external_id"], row["path"]): row for row in rows}
    if len(have) != len(rows):
        found.append(f"{len(rows) - len(have)} outputs are doubled")
    for expected in ("kept", "dead"):
        for line in summary["expected"][expected]:
            if line["prediction"] in ours:
                row = have.pop((line["prediction"], line["path"]), None)
                wanted = "discarded" if expected == "kept" and line["prediction"] in discarded else expected
                found += _output(line, row, wanted)
    return found + [f"{external_id} {path} is kept and was never announced" for external_id, path in have]


def _output(line: dict[str, Any], row: dict[str, Any] | None, wanted: str) -> list[str]:
    name = f"{line['prediction']} {line['path']}"
    if row is None:
        return [f"{name} is missing, expected {wanted}"]
    if row["state"] != wanted:
        return [f"{name} is {row['state']} ({row['reason']}), expected {wanted} ({line['fault']})"]
    if wanted == "kept" and (row["sha256"], row["bytes"]) != (line["sha256"], line["bytes"]):
        return [f"{name} was kept with other bytes than the provider served"]
    return []


def _bucket(rows: Sequence[dict[str, Any]], blobs: Blobs) -> list[str]:
    """Compare names and sizes with a listing, and digests with what storage computed itself."""
    recorded = {row["key"]: (row["bytes"], row["sha256"]) for row in rows if row["key"]}
    recorded |= {row["thumb_key"]: (row["thumb_bytes"], row["thumb_sha256"]) for row in rows if row["thumb_key"]}
    listed = {item.key: item.bytes for item in blobs.list(blobs.public_bucket, keys.RENDERS)}
    found = [f"object {key} is recorded and not in the bucket" for key in sorted(recorded.keys() - listed.keys())]
    found += [f"object {key} is in the bucket and in no row" for key in sorted(listed.keys() - recorded.keys())]
    for key in sorted(recorded.keys() & listed.keys()):
        stat = blobs.head(blobs.public_bucket, key)
        if stat is None or (stat.bytes, stat.sha256) != recorded[key]:
            found.append(f"object {key} differs from its row in size or sha256")
    return found
