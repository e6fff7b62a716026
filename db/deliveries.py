"""Deliveries: inbound webhook requests. receiver/deliveries.py inserts them; the ingest step ends them."""

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from db import dead_letters, leases
from db.connection import Connection, Database, QueuedQuery, Row
from db.events import build_event_insert, records
from db.leases import CLEAR_LEASE, RESTART
from db.statements import statement
from moorage.model import Delivery, Lease, Step
from moorage.retry_policy import DeadLetterDecision
from moorage.text import to_storable

MAX_BATCH_BYTES: Final = 4 << 20  # of the bodies of the further deliveries, except that of a single one

# A delivery whose worker died is claimed alone: the next crash is its own, and not counted against others.
_DUE: Final = "state IN ('new', 'unmatched') AND lease_token IS NULL AND run_at <= moment()"
CLAIM_DUE = f"""
WITH named AS MATERIALIZED (
    SELECT id, crashes FROM deliveries
     WHERE id = %(id)s AND {_DUE} AND crashes < %(max_crashes)s FOR UPDATE SKIP LOCKED
), further AS MATERIALIZED (
    SELECT id, run_at, octet_length(body) AS bytes FROM deliveries
     WHERE id <> %(id)s AND {_DUE} AND crashes = 0 AND NOT EXISTS (SELECT FROM named WHERE crashes > 0)
     ORDER BY run_at LIMIT %(max_rows)s - (SELECT count(*) FROM named) FOR UPDATE SKIP LOCKED
), due AS (
    SELECT id FROM named UNION ALL
    SELECT id FROM (SELECT id, bytes, sum(bytes) OVER (ORDER BY run_at, id) AS total FROM further) sizes
     WHERE total <= %(max_bytes)s OR total = bytes
)
UPDATE deliveries d SET attempt = attempt + 1, crashes = crashes + 1, lease_token = gen_random_uuid(),
       leased_by = %(leased_by)s, leased_until = moment() + make_interval(secs => %(lease_seconds)s)
 WHERE d.id = ANY (ARRAY(SELECT id FROM due))  -- a join would read all deliveries: the planner expects more rows
RETURNING d.id, provider, webhook_id, received_at, body, state, external_id, prediction_id, unmatched_until, key_sha256,
          headers ->> 'traceparent' AS traceparent, lease_token, moment() AS claimed_at, attempt, crashes /* planned */
"""


def claim_due(
    database: Database, delivery_id: UUID, *, leased_by: str, lease_seconds: float, max_crashes: int, max_rows: int
) -> list[Lease]:
    """Claim a delivery if it is due, and others that are; return them in the order in which they were received."""
    args = {"id": delivery_id, "leased_by": leased_by, "lease_seconds": lease_seconds, "max_crashes": max_crashes}
    rows = database.fetch_all(CLAIM_DUE, {**args, "max_rows": max_rows, "max_bytes": MAX_BATCH_BYTES})
    rows.sort(key=lambda row: (row["received_at"], row["id"]))
    works = [[row.pop(name) for name in ("lease_token", "claimed_at", "attempt", "crashes")] for row in rows]
    return [
        Lease("deliveries", row["id"], token, leased_by, claimed_at, attempt, crashes, delivery=Delivery(**row))
        for row, (token, claimed_at, attempt, crashes) in zip(rows, works, strict=True)
    ]


@statement("""
SELECT id FROM deliveries WHERE id = ANY(%(ids)s::uuid[]) AND lease_token = ANY(%(tokens)s::uuid[])
 ORDER BY id FOR UPDATE SKIP LOCKED /* planned */
""")
def queue_lock(conn: Connection, ids: Sequence[UUID], tokens: Sequence[UUID]) -> QueuedQuery:
    """Lock leased deliveries, before any other row, but none that is locked; the rows are those locked."""


# A lease, and how its delivery ends: state, reason, external id, prediction, job.
DeliveryResult = tuple[Lease, str, str, str | None, UUID | None, UUID | None]
END = f"""
WITH moved AS (
    UPDATE deliveries d
       SET state = e.state, {CLEAR_LEASE}, run_at = NULL, ended_at = moment(), reason = e.reason,
           external_id = coalesce(e.external_id, d.external_id), prediction_id = e.prediction_id
      FROM unnest(%(ids)s::uuid[], %(tokens)s::uuid[], %(states)s::text[], %(reasons)s::text[],
                  %(external_ids)s::text[], %(prediction_ids)s::uuid[], %(job_ids)s::uuid[])
           AS e (id, token, state, reason, external_id, prediction_id, job_id)
      JOIN (SELECT id, state FROM deliveries) old USING (id) WHERE d.id = e.id AND d.lease_token = e.token
    RETURNING d.id, old.state AS from_state, d.state AS to_state, d.reason AS end_reason, e.job_id
) {build_event_insert("delivery", "from_state", "to_state", "end_reason")} /* planned */
"""


def build_end(*results: DeliveryResult) -> Row:
    """Return the arguments of END for leased deliveries."""
    leased, states, reasons, external_ids, prediction_ids, job_ids = map(list, zip(*results, strict=True))
    args = {"states": states, "reasons": reasons, "external_ids": external_ids, "prediction_ids": prediction_ids}
    tokens, row_ids = [lease.token for lease in leased], [lease.row_id for lease in leased]
    return {**args, "job_ids": job_ids, "ids": row_ids, "tokens": tokens, "actor": leased[0].leased_by}


def end(conn: Connection, lease: Lease, state: str, reason: str) -> None:
    leases.execute(conn, lease, END, **build_end((lease, state, reason, None, None, None)))


@statement(f"""
WITH old AS (
    SELECT id, state FROM deliveries WHERE id = %(id)s AND lease_token = %(token)s FOR UPDATE
), moved AS (
    UPDATE deliveries d
       SET state = 'unmatched', {CLEAR_LEASE}, attempt = attempt - 1, external_id = %(external_id)s, woken_at = NULL,
           unmatched_until = coalesce(d.unmatched_until, d.received_at + make_interval(secs => %(unmatched_seconds)s)),
           run_at = least(moment() + make_interval(secs => %(wait_seconds)s),
                          coalesce(d.unmatched_until, d.received_at + make_interval(secs => %(unmatched_seconds)s))),
           reason = 'prediction not registered yet'
      FROM old WHERE d.id = old.id
    RETURNING d.id, old.state AS from_state
)
INSERT INTO events (subject, subject_id, from_state, to_state, actor)
SELECT 'delivery', id, from_state, 'unmatched', %(actor)s FROM moved WHERE from_state <> 'unmatched'
""")
def mark_unmatched(
    conn: Connection, lease: Lease, external_id: str, *, wait_seconds: float, unmatched_seconds: float
) -> QueuedQuery:
    """Let a locked delivery wait for its prediction to be registered."""


MAKE_UNMATCHED_DUE = """
WITH waiting AS (
    SELECT id FROM deliveries
     WHERE state = 'unmatched' AND provider = %(provider)s AND external_id = %(external_id)s
     ORDER BY id FOR UPDATE
)
UPDATE deliveries d SET run_at = moment(), woken_at = NULL
  FROM waiting WHERE d.id = waiting.id AND d.state = 'unmatched'
RETURNING d.id /* planned */
"""


def dead_letter(
    conn: Connection, lease: Lease, decision: DeadLetterDecision, *, step: Step, facts: Mapping[str, object]
) -> None:
    """End a leased delivery as `dead`, with a dead letter. Raises LeaseLost."""
    end(conn, lease, "dead", to_storable(decision.reason))
    dead_letters.add(conn, "delivery", lease.row_id, decision, step=step, facts=facts, actor=lease.leased_by)


@records("delivery", "'dead'", "'new'", "'replayed'", job_id="NULL")
@statement(f"""
UPDATE deliveries SET state = 'new', unmatched_until = NULL, {RESTART}
 WHERE id = %(delivery_id)s AND state = 'dead' AND body IS NOT NULL RETURNING id
""")
def replay(conn: Connection, delivery_id: UUID, actor: str) -> bool:
    """Reset a dead delivery to `new`; return False if its body was purged or it is not dead."""


@statement("SELECT body FROM deliveries WHERE id = %(delivery_id)s")
def get_body(conn: Connection, delivery_id: UUID) -> bytes | None: ...


DETAILS = """
SELECT d.id, d.provider, d.webhook_id, d.external_id, d.prediction_id, p.job_id, d.received_at, d.state, d.reason,
       octet_length(d.body) AS bytes, d.body_sha256, d.headers, d.unmatched_until, d.run_at, d.attempt, d.crashes,
       d.leased_by, d.leased_until, d.ended_at
  FROM deliveries d LEFT JOIN predictions p ON p.id = d.prediction_id
"""


@statement(f"{DETAILS} WHERE p.job_id = %(job_id)s ORDER BY received_at LIMIT 200")
def list_by_job(conn: Connection, job_id: UUID) -> list[Row]: ...


@statement(f"{DETAILS} WHERE d.prediction_id = %(prediction_id)s ORDER BY received_at LIMIT 200")
def list_by_prediction(conn: Connection, prediction_id: UUID) -> list[Row]: ...
