"""Three sources that do not know each other, compared: the stand-in's ledger, PostgreSQL, a listing of the bucket."""

from collections.abc import Iterable, Sequence
from typing import Any

from db.connection import Connection, fetch_all
from simulation.demo.api_client import Ordered
from simulation.demo.registered import Started
from storage import keys
from storage.s3 import ObjectStore

# fal.ai's webhooks carry no id of their own: they are told apart by the prediction, of which each has one.
WEBHOOK_IDS = "SELECT CASE provider WHEN 'fal' THEN external_id ELSE webhook_id END AS webhook_id FROM deliveries"

OUTPUTS = """
SELECT p.external_id, o.job_id, o.path, o.state, o.sha256, o.bytes, o.key, o.thumb_key, o.thumb_bytes, o.thumb_sha256,
       o.reason, o.is_placeholder
  FROM outputs o JOIN predictions p ON p.id = o.prediction_id
"""

JOBS = "SELECT id, state, reason FROM jobs"

PREDICTIONS = "SELECT external_id FROM predictions WHERE external_id IS NOT NULL"

VARIANTS = "SELECT count(*) AS count, count(DISTINCT output_id) AS outputs FROM render_variants"


def differences(
    conn: Connection, blobs: ObjectStore, ledger: dict[str, Any], started: Sequence[Started], placed: Sequence[Ordered]
) -> list[str]:
    """Return where the three sources differ, a line each; an empty list is the proof."""
    summary, made = ledger["summary"], [line for line in ledger["lines"] if line["kind"] == "prediction"]
    rows = fetch_all(conn, OUTPUTS)
    return [
        *_webhooks(conn, summary, {line["prediction"] for line in made if line["provider"] == "fal"}),
        *_made(conn, made, started),
        *_jobs(conn, started, placed),
        *_stopped(ledger["lines"], placed),
        *_outputs([row for row in rows if not row["is_placeholder"]], summary, started, placed),
        *_placeholders([row for row in rows if row["is_placeholder"]], placed),
        *_bucket(rows, blobs),
        *(["the guard is open: a private address was visited"] if summary["traps"] else []),
    ]


def _webhooks(conn: Connection, summary: dict[str, Any], of_fal: set[str]) -> list[str]:
    recorded = {row["webhook_id"] for row in fetch_all(conn, WEBHOOK_IDS)}
    taken = summary["acknowledged"].items()
    acknowledged = {about["prediction"] if about["prediction"] in of_fal else w for w, about in taken}
    found = [f"webhook {w} was answered 2xx and is not recorded" for w in sorted(acknowledged - recorded)]
    found += [f"webhook {w} is recorded and was never answered 2xx" for w in sorted(recorded - acknowledged)]
    return found + [f"webhook {w} was wrongly signed and taken" for w in summary["wrongly_signed_accepted"]]


def _made(conn: Connection, made: Iterable[dict[str, Any]], started: Sequence[Started]) -> list[str]:
    """Compare what was really made with what we know of: nothing is paid for and unseen."""
    known = {row["external_id"] for row in fetch_all(conn, PREDICTIONS)}
    known |= {one.external_id for one in started if one.job_id is None}
    unknown = [line for line in made if line["prediction"] not in known]
    return [f"{line['provider']} made {line['prediction']}, which nobody here knows" for line in unknown]


def _jobs(conn: Connection, started: Sequence[Started], placed: Sequence[Ordered]) -> list[str]:
    states = {str(row["id"]): row for row in fetch_all(conn, JOBS)}
    wanted = [(one.job_id, one.case.name, one.case.state) for one in started]
    wanted += [(one.job_id, one.order.name, one.order.state) for one in placed]
    found = []
    for job_id, name, expected in wanted:
        row = states.pop(job_id, None) if job_id else None
        state = row["state"] if row else None
        if state != expected:
            why = f" ({row['reason']})" if row and row["reason"] else ""
            found.append(f"job {name!r} ended {state}{why}, expected {expected}")
    found += [line for one in placed for line in _order(one)]
    return found + [f"there is a job {job_id}, which nobody asked for" for job_id in states]


def _order(one: Ordered) -> list[str]:
    """Compare what the API shows of an ordered job with what must have become of it."""
    tried = tuple(prediction["provider"] for prediction in one.shown["predictions"])
    found = [] if tried == one.order.tries else [f"job {one.order.name!r} was tried at {tried}, not {one.order.tries}"]
    count = len(one.shown["variants"])
    if count != one.order.publishes:
        found.append(f"job {one.order.name!r} shows {count} files, expected {one.order.publishes}")
    return found


def _stopped(lines: Iterable[dict[str, Any]], placed: Sequence[Ordered]) -> list[str]:
    """Compare what the application cancelled with what its providers stopped."""
    stopped = {line["prediction"] for line in lines if line["kind"] == "ended" and line["status"] == "canceled"}
    tries = [p for one in placed if one.order.steer == "cancel" for p in one.shown["predictions"]]
    return [f"{p['provider']} went on with {p['external_id']}" for p in tries if p["external_id"] not in stopped]


def _outputs(
    rows: Sequence[dict[str, Any]], summary: dict[str, Any], started: Sequence[Started], placed: Sequence[Ordered]
) -> list[str]:
    ours = {one.external_id for one in started if one.job_id is not None}
    ours |= {p["external_id"] for one in placed for p in one.shown["predictions"] if p["state"] == "succeeded"}
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


def _placeholders(rows: Sequence[dict[str, Any]], placed: Sequence[Ordered]) -> list[str]:
    """Compare the pictures that we made ourselves with the jobs that asked for one and came to need it."""
    kept = sorted(str(row["job_id"]) for row in rows if row["state"] == "kept")
    wanted = sorted(one.job_id for one in placed if one.order.stands_in)
    return [] if kept == wanted else [f"{len(kept)} placeholders are kept, {len(wanted)} were needed"]


def _output(line: dict[str, Any], row: dict[str, Any] | None, wanted: str) -> list[str]:
    name = f"{line['prediction']} {line['path']}"
    if row is None:
        return [f"{name} is missing, expected {wanted}"]
    if row["state"] != wanted:
        return [f"{name} is {row['state']} ({row['reason']}), expected {wanted} ({line['fault']})"]
    if wanted == "kept" and (row["sha256"], row["bytes"]) != (line["sha256"], line["bytes"]):
        return [f"{name} was kept with other bytes than the provider served"]
    return []


def _bucket(rows: Sequence[dict[str, Any]], blobs: ObjectStore) -> list[str]:
    """Compare names and sizes with a listing, and digests with what storage computed itself."""
    recorded = {row["key"]: (row["bytes"], row["sha256"]) for row in rows if row["key"]}
    recorded |= {row["thumb_key"]: (row["thumb_bytes"], row["thumb_sha256"]) for row in rows if row["thumb_key"]}
    listed = {item.key: item.size_bytes for item in blobs.list_objects(blobs.public_bucket, keys.RENDER_PREFIX)}
    found = [f"object {key} is recorded and not in the bucket" for key in sorted(recorded.keys() - listed.keys())]
    found += [f"object {key} is in the bucket and in no row" for key in sorted(listed.keys() - recorded.keys())]
    for key in sorted(recorded.keys() & listed.keys()):
        stat = blobs.head(blobs.public_bucket, key)
        if stat is None or (stat.size_bytes, stat.sha256) != recorded[key]:
            found.append(f"object {key} differs from its row in size or sha256")
    return found
