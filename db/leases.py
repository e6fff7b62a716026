"""
Claims on rows of deliveries, predictions, outputs and notices: claim, renew, hand back, release. One file for all.

A row is leased when `lease_token` is not null. Every write under a lease names the token; no row back means that
another worker owns it. A claim counts an attempt and a crash; writing back takes the crash back.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from db.connection import Connection, fetch_all, fetch_one
from moorage.errors import LeaseLost
from moorage.model import Lease, WorkTable

SUBJECT: Final[Mapping[WorkTable, str]] = {
    "deliveries": "delivery",
    "predictions": "prediction",
    "outputs": "output",
    "notices": "notice",
}

# What every write-back of the worker itself does to the lease.
CLEAR_LEASE: Final = "lease_token = NULL, leased_by = NULL, leased_until = NULL, crashes = crashes - 1"

_JOB: Final = {"deliveries": "NULL::uuid", "predictions": "job_id", "outputs": "job_id", "notices": "job_id"}

# Whether nobody has paused a row. The list of pauses is read once; while it is empty no output is asked for its
# provider, and the planner does not take the rows for few, which would cost it the index. Objects are discarded, and
# deliveries ingested, during a pause too.
_PAUSED: Final = "ALL (ARRAY(SELECT target FROM pauses))"
UNPAUSED: Final[Mapping[WorkTable, str]] = {
    "deliveries": "true",
    "predictions": f"(NOT EXISTS (SELECT FROM pauses) OR predictions.provider <> {_PAUSED})",
    "outputs": f"""(state <> 'waiting' OR NOT EXISTS (SELECT FROM pauses)
                OR 'keep' <> {_PAUSED}
               AND (SELECT provider FROM predictions p WHERE p.id = outputs.prediction_id) <> {_PAUSED})""",
    "notices": "true",
}


def _for_each(sql: str) -> dict[WorkTable, str]:
    return {
        t: sql.format(table=t, subject=SUBJECT[t], job=_JOB[t], clear=CLEAR_LEASE, unpaused=UNPAUSED[t])
        for t in SUBJECT
    }


CLAIM = _for_each("""
UPDATE {table}
   SET attempt = attempt + 1, crashes = crashes + 1, lease_token = %(token)s, leased_by = %(leased_by)s,
       leased_until = moment() + make_interval(secs => %(lease_seconds)s)
 WHERE id = (SELECT id FROM {table}
              WHERE id = %(row_id)s AND state = ANY(%(states)s::text[]) AND lease_token IS NULL
                AND run_at <= moment() AND crashes < %(max_crashes)s
                AND {unpaused}
                FOR UPDATE SKIP LOCKED)
RETURNING id, moment() AS claimed_at, attempt, crashes
""")


def claim(
    conn: Connection,
    table: WorkTable,
    row_id: UUID,
    *,
    states: Sequence[str],
    leased_by: str,
    lease_seconds: float,
    max_crashes: int,
) -> Lease | None:
    """Claim a due row that nobody holds; None when there is no such row, it is paused or has crashed too often."""
    token = uuid.uuid4()
    args = {
        "row_id": row_id,
        "states": list(states),
        "token": token,
        "leased_by": leased_by,
        "lease_seconds": lease_seconds,
        "max_crashes": max_crashes,
    }
    row = fetch_one(conn, CLAIM[table], args)
    return Lease(table, row_id, token, leased_by, row["claimed_at"], row["attempt"], row["crashes"]) if row else None


IS_POISON = _for_each("""
SELECT id FROM {table}
 WHERE id = %(row_id)s AND state = ANY(%(states)s::text[]) AND lease_token IS NULL AND run_at <= moment()
   AND crashes >= %(max_crashes)s AND {unpaused}
""")


def is_poison(conn: Connection, table: WorkTable, row_id: UUID, *, states: Sequence[str], max_crashes: int) -> bool:
    """Return whether a due row has crashed too often to be claimed again."""
    args = {"row_id": row_id, "states": list(states), "max_crashes": max_crashes}
    return fetch_one(conn, IS_POISON[table], args) is not None


RENEW = _for_each("""
UPDATE {table} SET leased_until = moment() + make_interval(secs => %(lease_seconds)s)
 WHERE id = %(row_id)s AND lease_token = %(token)s
RETURNING id
""")


def renew(conn: Connection, lease: Lease, *, lease_seconds: float) -> bool:
    """Prolong a lease, also an expired one that nobody took; False when it is lost."""
    args = {"row_id": lease.row_id, "token": lease.token, "lease_seconds": lease_seconds}
    return fetch_one(conn, RENEW[lease.table], args) is not None


HOLDS = _for_each("SELECT id FROM {table} WHERE id = %(row_id)s AND lease_token = %(token)s")


def is_current(conn: Connection, lease: Lease) -> bool:
    """Return whether the row still carries the token: what an uncertain COMMIT is decided by."""
    return fetch_one(conn, HOLDS[lease.table], {"row_id": lease.row_id, "token": lease.token}) is not None


HAND_BACK = _for_each("""
WITH moved AS (
    UPDATE {table}
       SET {clear}, attempt = attempt - CASE WHEN %(counted)s THEN 0 ELSE 1 END, woken_at = NULL,
           run_at = moment() + make_interval(secs => %(wait_seconds)s), reason = %(reason)s
     WHERE id = %(row_id)s AND lease_token = %(token)s
    RETURNING id, {job} AS job_id, state
)
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
SELECT '{subject}', id, job_id, state, state, %(reason)s, %(actor)s FROM moved
RETURNING subject_id AS id
""")


def reschedule(conn: Connection, lease: Lease, *, wait_seconds: float, reason: str, counts_as_error: bool) -> None:
    """
    Give a row back, to be tried again after a wait.

    Args:
        counted: whether the attempt counts as an error; a stopping worker's does not, nor does our own outage.

    Raises:
        LeaseLost: another worker owns it.
    """
    args: dict[str, Any] = {
        "row_id": lease.row_id,
        "token": lease.token,
        "wait_seconds": max(wait_seconds, 0.0),
        "reason": reason,
        "counted": counts_as_error,
        "actor": lease.leased_by,
    }
    if fetch_one(conn, HAND_BACK[lease.table], args) is None:
        raise LeaseLost(f"{lease.table} {lease.row_id}: the lease is lost")


def build_end_statement(table: WorkTable, from_state: str, to_state: str, values: str) -> str:
    """Return the statement by which `end` ends rows of a state; `values` is what it sets beside the work columns."""
    return f"""
WITH moved AS (
    UPDATE {table}
       SET state = '{to_state}', {CLEAR_LEASE}, run_at = NULL, ended_at = moment(), {values}
     WHERE id = %(row_id)s AND lease_token = %(token)s AND state = '{from_state}'
    RETURNING id, {_JOB[table]} AS job_id
)
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
SELECT '{SUBJECT[table]}', id, job_id, '{from_state}', '{to_state}', %(reason)s, %(actor)s FROM moved
RETURNING job_id
"""


def execute_end(conn: Connection, lease: Lease, statement: str, *, reason: str | None = None, **values: object) -> UUID:
    """Run a statement of `ending` on a leased row of a job; returns the job. LeaseLost when another worker owns it."""
    args = {"row_id": lease.row_id, "token": lease.token, "actor": lease.leased_by, "reason": reason, **values}
    row = fetch_one(conn, statement, args)
    if row is None:
        raise LeaseLost(f"{SUBJECT[lease.table]} {lease.row_id}: the lease is lost")
    return UUID(str(row["job_id"]))


# A release names its lease: the audit compares it with the keys of objects, which name the lease that stored them.
RELEASE_OF = _for_each("""
WITH held AS MATERIALIZED (
    SELECT id, left(lease_token::text, 8) AS lease FROM {table}
     WHERE leased_by = %(leased_by)s AND lease_token IS NOT NULL
       FOR UPDATE
), moved AS (
    UPDATE {table} t
       SET lease_token = NULL, leased_by = NULL, leased_until = NULL, woken_at = NULL
      FROM held WHERE t.id = held.id
    RETURNING t.id, {job} AS job_id, t.state, held.lease
)
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
SELECT '{subject}', id, job_id, state, state, %(reason)s || ' (lease ' || lease || ')', %(leased_by)s FROM moved
RETURNING subject_id AS id
""")


def release_held_by(conn: Connection, leased_by: str, reason: str) -> list[tuple[WorkTable, UUID]]:
    """Free what a dead worker child held; its crash stays counted. Returns the rows freed."""
    args = {"leased_by": leased_by, "reason": reason}
    return [(table, row["id"]) for table in SUBJECT for row in fetch_all(conn, RELEASE_OF[table], args)]


# In the first 30 s after PostgreSQL started its leases may be alive: their holders could not renew them.
RELEASE_EXPIRED = _for_each("""
WITH expired AS MATERIALIZED (
    SELECT id, left(lease_token::text, 8) AS lease FROM {table}
     WHERE lease_token IS NOT NULL AND leased_until < moment()
       AND pg_postmaster_start_time() < clock_timestamp() - interval '30 s'
     ORDER BY leased_until LIMIT 500 FOR UPDATE SKIP LOCKED
), moved AS (
    UPDATE {table} t
       SET lease_token = NULL, leased_by = NULL, leased_until = NULL, woken_at = NULL
      FROM expired WHERE t.id = expired.id
    RETURNING t.id, {job} AS job_id, t.state, expired.lease
)
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
SELECT '{subject}', id, job_id, state, state, 'the lease ' || lease || ' expired: its worker is gone or stuck',
       %(actor)s
  FROM moved
RETURNING subject_id AS id
""")


def release_expired(conn: Connection, table: WorkTable, actor: str) -> list[UUID]:
    """Free leases whose end has passed; their crash stays counted. Returns the rows freed, at most 500."""
    return [row["id"] for row in fetch_all(conn, RELEASE_EXPIRED[table], {"actor": actor})]


def _due(table: WorkTable, rows: str, urgent: str = "run_at") -> str:
    return f"""
WITH due AS MATERIALIZED (
    SELECT id FROM {table}
     WHERE {rows} AND lease_token IS NULL AND run_at <= moment()
       AND (%(starved)s OR woken_at IS NULL OR woken_at < moment() - interval '30 s')
     ORDER BY {urgent} LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
UPDATE {table} t SET woken_at = moment() FROM due WHERE t.id = due.id RETURNING t.id
"""


# What dispatch looks at, most urgent first. `starved`: the queue is empty, so old wakes are gone.
_PLANNED: Final = f"state IN ('planned', 'submitting') AND {UNPAUSED['predictions']}"
DUE: Final = {
    "ingest": _due("deliveries", "state IN ('new', 'unmatched')"),
    "submit": _due("predictions", f"{_PLANNED} AND provider <> ALL (%(synchronous)s::text[])"),
    "generate": _due("predictions", f"{_PLANNED} AND provider = ANY (%(synchronous)s::text[])"),
    "poll": _due("predictions", f"state IN ('running', 'abandoned') AND {UNPAUSED['predictions']}"),
    "keep": _due("outputs", f"state = 'waiting' AND {UNPAUSED['outputs']}", "expires_at NULLS LAST, run_at"),
    "discard": _due("outputs", "state = 'discarding'"),
    "notify": _due("notices", "state = 'waiting'"),
}


def wake_due(
    conn: Connection, step: str, *, limit: int, queue_is_empty: bool, synchronous: Sequence[str] = ()
) -> list[UUID]:
    """
    Mark the most urgent due rows of a step as woken and return their ids; no row twice within 30 s.

    Args:
        synchronous: the providers whose predictions are submitted by the step generate, not by submit.
    """
    args = {"limit": limit, "starved": queue_is_empty, "synchronous": list(synchronous)}
    return [row["id"] for row in fetch_all(conn, DUE[step], args)]


STATE = {table: f"SELECT state FROM {table} WHERE id = %(id)s" for table in SUBJECT}


def get_state(conn: Connection, table: WorkTable, row_id: UUID) -> str | None:
    """Return the state of a row, None when there is none."""
    row = fetch_one(conn, STATE[table], {"id": row_id})
    return str(row["state"]) if row else None
