"""Deliveries: inbound webhook requests. receiver/deliveries.py inserts them; the ingest step ends them."""

from collections.abc import Mapping
from uuid import UUID

from db import dead_letters, leases
from db.connection import Connection, Row, fetch_all, fetch_one
from db.events import build_event_insert
from db.leases import CLEAR_LEASE
from moorage.model import Delivery, Lease, Step
from moorage.retry_policy import DeadLetterDecision
from moorage.text import to_storable

LIVE_STATES = ("new", "unmatched")

GET = """
SELECT id, provider, webhook_id, received_at, body, state, external_id, prediction_id, unmatched_until, key_sha256
  FROM deliveries WHERE id = %(id)s
"""


def get(conn: Connection, delivery_id: UUID) -> Delivery | None:
    row = fetch_one(conn, GET, {"id": delivery_id})
    return Delivery(**row) if row else None


LOCK = "SELECT id FROM deliveries WHERE id = %(id)s AND lease_token = %(token)s FOR UPDATE"


def lock_leased(conn: Connection, lease: Lease) -> None:
    """Lock a leased delivery, before any other row. Raises LeaseLost."""
    leases.execute(conn, lease, LOCK)


END = f"""
WITH old AS (
    SELECT id, state FROM deliveries WHERE id = %(id)s AND lease_token = %(token)s FOR UPDATE
), moved AS (
    UPDATE deliveries d SET state = %(state)s, {CLEAR_LEASE}, run_at = NULL, ended_at = moment(), reason = %(reason)s,
           external_id = coalesce(%(external_id)s, d.external_id), prediction_id = %(prediction_id)s
      FROM old WHERE d.id = old.id
    RETURNING d.id, old.state AS from_state
) {build_event_insert("delivery", "from_state", "%(state)s", "%(reason)s", job_id="%(job_id)s")}
"""


def end(
    conn: Connection,
    lease: Lease,
    state: str,
    reason: str,
    *,
    external_id: str | None = None,
    prediction_id: UUID | None = None,
    job_id: UUID | None = None,
) -> None:
    """End a delivery as applied, ignored or dead. Raises LeaseLost."""
    ids = {"external_id": external_id, "prediction_id": prediction_id, "job_id": job_id}
    leases.execute(conn, lease, END, state=state, reason=reason, **ids)


MARK_UNMATCHED = f"""
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
"""


def mark_unmatched(
    conn: Connection, lease: Lease, external_id: str, *, wait_seconds: float, unmatched_seconds: float
) -> None:
    """Let a delivery wait for its prediction to be registered. Raises LeaseLost."""
    lock_leased(conn, lease)
    times = {"wait_seconds": wait_seconds, "unmatched_seconds": unmatched_seconds}
    args = {"id": lease.row_id, "token": lease.token, "actor": lease.leased_by, "external_id": external_id, **times}
    conn.execute(MARK_UNMATCHED, args)


MAKE_UNMATCHED_DUE = """
WITH waiting AS (
    SELECT id FROM deliveries
     WHERE state = 'unmatched' AND provider = %(provider)s AND external_id = %(external_id)s
     ORDER BY id FOR UPDATE
)
UPDATE deliveries d SET run_at = moment(), woken_at = NULL
  FROM waiting WHERE d.id = waiting.id AND d.state = 'unmatched'
RETURNING d.id
"""


def make_unmatched_due(conn: Connection, provider: str, external_id: str) -> list[UUID]:
    """Make the unmatched deliveries of a newly registered prediction due; return their ids."""
    args = {"provider": provider, "external_id": external_id}
    return [row["id"] for row in fetch_all(conn, MAKE_UNMATCHED_DUE, args)]


def dead_letter(
    conn: Connection, lease: Lease, decision: DeadLetterDecision, *, step: Step, facts: Mapping[str, object]
) -> None:
    """End a leased delivery as `dead`, with a dead letter. Raises LeaseLost."""
    delivery = get(conn, lease.row_id)
    provider = delivery.provider if delivery else None
    end(conn, lease, "dead", to_storable(decision.reason))
    dead_letters.add(
        conn, "delivery", lease.row_id, decision, step=step, provider=provider, facts=facts, actor=lease.leased_by
    )


REPLAY = f"""
WITH moved AS (
    UPDATE deliveries SET state = 'new', run_at = moment(), woken_at = NULL, ended_at = NULL, attempt = 0, crashes = 0,
           unmatched_until = NULL
     WHERE id = %(id)s AND state = 'dead' AND body IS NOT NULL RETURNING id
) {build_event_insert("delivery", "'dead'", "'new'", "'replayed'", job_id="NULL")}
"""


def replay(conn: Connection, delivery_id: UUID, actor: str) -> bool:
    """Reset a dead delivery to `new`; return False if its body was purged or it is not dead."""
    return fetch_one(conn, REPLAY, {"id": delivery_id, "actor": actor}) is not None


LIST_BY_PREDICTION = """
SELECT id, provider, webhook_id, received_at, state, reason, octet_length(body) AS bytes
  FROM deliveries WHERE prediction_id = %(prediction_id)s ORDER BY received_at LIMIT 200
"""


def list_by_prediction(conn: Connection, prediction_id: UUID) -> list[Row]:
    return fetch_all(conn, LIST_BY_PREDICTION, {"prediction_id": prediction_id})
