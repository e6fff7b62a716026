"""After the drill: is everything that was sent accounted for, and is every repeated attempt explained by a fault?"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from db.connection import Connection, fetch_all
from simulation.chaos import retry_verdict, submission_verdict
from simulation.chaos.schedule import Landed
from simulation.chaos.submission_load import Ordered
from simulation.chaos.submission_verdict import Account
from simulation.demo.registered import Started
from storage import keys
from storage.s3 import ObjectStore

# fal.ai's webhooks carry no id of their own: they are told apart by the prediction, of which each has one.
WEBHOOK_IDS = "SELECT CASE provider WHEN 'fal' THEN external_id ELSE webhook_id END AS webhook_id FROM deliveries"

OUTPUTS = """
SELECT p.external_id, o.path, o.state, o.category, o.reason, o.source_expired, o.sha256, o.bytes, o.key, o.thumb_key,
       o.thumb_bytes, o.thumb_sha256, v.idx IS NOT NULL AS is_published, j.fallback_chain IS NOT NULL AS is_ordered
  FROM outputs o JOIN predictions p ON p.id = o.prediction_id JOIN jobs j ON j.id = o.job_id
  LEFT JOIN render_variants v ON v.output_id = o.id
"""

JOBS = """
SELECT p.external_id, j.state, j.reason FROM jobs j JOIN predictions p ON p.job_id = j.id WHERE j.fallback_chain IS NULL
"""

DEAD = "SELECT category, error, count(*) AS count FROM dead_letters GROUP BY 1, 2 ORDER BY 3 DESC"


@dataclass(slots=True)
class Verdict:
    """What a drill found; `is_clean` is the promise."""

    files: int = 0  # that the provider announced, and that are to be kept or given up
    acknowledged: int = 0
    kept: int = 0
    orders: Account = field(default_factory=Account)
    repeated: int = 0
    expired: set[str] = field(default_factory=set)  # given up because a clock jump took their URL's life
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    orphans: int = 0
    dead: list[tuple[str, int]] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Return whether nothing was lost or doubled, and nothing happened without a cause."""
        return not (self.lost or self.doubled or self.unexpected or self.unexplained)


def judge(
    conn: Connection,
    blobs: ObjectStore,
    ledger: dict[str, Any],
    started: Sequence[Started],
    ordered: Sequence[Ordered],
    landed: Sequence[Landed],
) -> Verdict:
    """Compare what was sent and acknowledged with rows and objects."""
    verdict, summary = Verdict(), ledger["summary"]
    rows = fetch_all(conn, OUTPUTS)
    verdict.dead = [(f"{row['category']} {row['error']}", row["count"]) for row in fetch_all(conn, DEAD)]
    if any(fault.kind == "clock jump" for fault in landed):
        verdict.expired = {row["external_id"] for row in rows if row["source_expired"]}
    verdict.files = sum(len(summary["expected"][name]) for name in ("kept", "dead"))
    _webhooks(conn, ledger, verdict)
    _jobs(conn, started, verdict)
    _outputs([row for row in rows if not row["is_ordered"]], summary, started, verdict)
    _orders(conn, ledger, ordered, landed, verdict)
    _objects(rows, blobs, verdict)
    _repeats(conn, summary, ordered, landed, verdict)
    if summary["traps"]:
        verdict.unexpected.append("a private address was visited: some guard is open")
    return verdict


def _webhooks(conn: Connection, ledger: dict[str, Any], verdict: Verdict) -> None:
    """An acknowledged webhook must be there; one recorded and never acknowledged is legal: its answer was lost."""
    summary = ledger["summary"]
    recorded = Counter(row["webhook_id"] for row in fetch_all(conn, WEBHOOK_IDS))
    attempts = (line for line in ledger["lines"] if line["kind"] == "webhook")
    of_fal = {line["webhook_id"]: line["prediction"] for line in attempts if line["provider"] == "fal"}
    acknowledged = {of_fal.get(webhook_id, webhook_id) for webhook_id in summary["acknowledged"]}
    sent = acknowledged | {of_fal.get(webhook_id, webhook_id) for webhook_id in summary["unacknowledged"]}
    verdict.acknowledged = len(acknowledged)
    verdict.lost += [f"webhook {w} was answered 2xx" for w in acknowledged if w not in recorded]
    verdict.doubled += [f"webhook {w} has {n} rows" for w, n in recorded.items() if n > 1]
    verdict.unexpected += [f"webhook {w} was never sent" for w in recorded if w not in sent]
    verdict.unexpected += [f"webhook {w} was wrongly signed and taken" for w in summary["wrongly_signed_accepted"]]


def _orders(
    conn: Connection,
    ledger: dict[str, Any],
    ordered: Sequence[Ordered],
    landed: Sequence[Landed],
    verdict: Verdict,
) -> None:
    jumps = [(fault.began_at, fault.ended_at) for fault in landed if fault.kind == "clock jump"]
    verdict.orders = submission_verdict.judge(conn, ledger["lines"], ordered, jumps)
    verdict.lost += verdict.orders.lost
    verdict.doubled += verdict.orders.doubled
    verdict.unexpected += verdict.orders.unexpected


def _jobs(conn: Connection, started: Sequence[Started], verdict: Verdict) -> None:
    states: dict[str, list[dict[str, Any]]] = {}
    for row in fetch_all(conn, JOBS):
        states.setdefault(row["external_id"], []).append(row)
    for one in started:
        rows = states.pop(one.external_id, [])
        if not rows:
            verdict.lost.append(f"{one.case.name} was acknowledged and has no job")
        elif len(rows) > 1:
            verdict.doubled.append(f"{one.case.name} has {len(rows)} jobs")
        elif rows[0]["state"] != one.case.state and one.external_id not in verdict.expired:
            reason = f"({rows[0]['reason']})" if rows[0]["reason"] else ""
            verdict.unexpected.append(f"{one.case.name} ended {rows[0]['state']} {reason}, expected {one.case.state}")
    verdict.unexpected += [f"there is a job for {external_id}, which nobody registered" for external_id in states]


def _outputs(
    rows: Sequence[dict[str, Any]], summary: dict[str, Any], started: Sequence[Started], verdict: Verdict
) -> None:
    ours = {one.external_id for one in started}
    have: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        have.setdefault((row["external_id"], row["path"]), []).append(row)
    for expected in ("kept", "dead"):
        for line in summary["expected"][expected]:
            if line["prediction"] in ours:
                _output(line, have.pop((line["prediction"], line["path"]), []), expected, verdict)
    verdict.unexpected += [f"{external_id} {path} was never announced" for external_id, path in have]


def _output(line: dict[str, Any], rows: Sequence[dict[str, Any]], expected: str, verdict: Verdict) -> None:
    name = f"{line['prediction']} {line['path']}"
    if not rows:
        verdict.lost.append(f"{name}: no row, expected {expected}")
    elif len(rows) > 1:
        verdict.doubled.append(f"{name}: {len(rows)} rows")
    elif rows[0]["source_expired"] and line["prediction"] in verdict.expired:
        return  # by the jumped clock its URL was dead: a dead letter says so
    elif rows[0]["state"] != expected:
        where = verdict.lost if expected == "kept" else verdict.unexpected
        where.append(f"{name}: {rows[0]['state']} ({rows[0]['reason']}), expected {expected}")
    elif expected == "kept":
        verdict.kept += 1
        if (rows[0]["sha256"], rows[0]["bytes"]) != (line["sha256"], line["bytes"]):
            verdict.unexpected.append(f"{name}: kept with other bytes than were served")
        if not rows[0]["is_published"]:
            verdict.lost.append(f"{name}: kept and not published")


def _objects(rows: Sequence[dict[str, Any]], blobs: ObjectStore, verdict: Verdict) -> None:
    recorded = {row["key"]: row["bytes"] for row in rows if row["key"]}
    recorded |= {row["thumb_key"]: row["thumb_bytes"] for row in rows if row["thumb_key"]}
    listed = {item.key: item.size_bytes for item in blobs.list_objects(blobs.public_bucket, keys.RENDER_PREFIX)}
    verdict.lost += [f"object {key}" for key in recorded.keys() - listed.keys()]
    verdict.unexpected += [
        f"object {key} has {listed[key]} bytes, not {recorded[key]}"
        for key in recorded.keys() & listed.keys()
        if listed[key] != recorded[key]
    ]
    verdict.orphans = len(listed.keys() - recorded.keys())


def _repeats(
    conn: Connection,
    summary: dict[str, Any],
    ordered: Sequence[Ordered],
    landed: Sequence[Landed],
    verdict: Verdict,
) -> None:
    """Each repeat must be explained by a fault, or be a trouble that the provider itself made for it."""
    troubled = {
        (line["prediction"], line["path"])
        for expected in ("kept", "dead")
        for line in summary["expected"][expected]
        if line["fault"]
    }
    prompts = {entry.prompt for one in ordered for entry in one.order.chain if entry.is_troubled}
    rows = fetch_all(conn, retry_verdict.REPEATED)
    verdict.repeated = len(rows)
    verdict.unexplained += retry_verdict.unexplained(
        rows, landed, lambda row: (row["external_id"], row["path"]) in troubled or row["prompt"] in prompts
    )
