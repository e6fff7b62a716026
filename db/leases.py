"""
Leases on rows of deliveries, predictions, outputs and notifications: claim, renew, reschedule, release.

A row is leased if `lease_token` is not null. Every write under a lease checks the token; no row returned means that
another worker owns the row. A claim increments `attempt` and `crashes`; a write by the lease holder decrements
`crashes`.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from db import breakers
from db.connection import Connection, Database, Row, fetch_all, fetch_one
from db.events import build_event_insert
from db.statements import require_row, statement
from moorage.errors import DatabaseLocked, StepInterrupted
from moorage.model import Lease, Step, WorkTable
from moorage.transitions import EventKind

SUBJECT: Final[Mapping[WorkTable, str]] = {
    "deliveries": "delivery",
    "predictions": "prediction",
    "outputs": "output",
    "notifications": "notification",
}
# A released prediction that is still to be submitted is not taken by a poll: dispatch wakes it within a second.
STEP_BY_TABLE: Final[Mapping[WorkTable, Step]] = {
    "deliveries": "ingest",
    "predictions": "poll",
    "outputs": "keep",
    "notifications": "notify",
}

# The states of rows that moorage still works on; the others are terminal.
LIVE: Final[Mapping[str, str]] = {
    "deliveries": "'new', 'unmatched'",
    "predictions": "'planned', 'submitting', 'running', 'abandoned'",
    "outputs": "'waiting', 'discarding'",
    "notifications": "'waiting'",
}

# Live rows that are not leased, as in the indexes. Predictions have two: planned ones must not delay the others.
WAITING: Final = {table: f"state IN ({states}) AND lease_token IS NULL" for table, states in LIVE.items()} | {
    "predictions": "(state = 'planned' OR state IN ('submitting', 'running', 'abandoned')) AND lease_token IS NULL"
}

# Part of every write by the lease holder that ends the lease.
CLEAR_LEASE: Final = "lease_token = NULL, leased_by = NULL, leased_until = NULL, crashes = crashes - 1"
# Part of every write that makes an ended row due again.
RESTART: Final = "run_at = moment(), woken_at = NULL, ended_at = NULL, attempt = 0, crashes = 0"

JOB_ID: Final = {"deliveries": "NULL::uuid", "predictions": "job_id", "outputs": "job_id", "notifications": "job_id"}

# The condition that a row is not paused. The list of pauses is read once a statement. With an empty list no provider
# is looked up, and the planner does not underestimate the rows, which would make it skip the index. A pause affects
# neither ingest nor discard.
_PAUSED: Final = "ALL (ARRAY(SELECT target FROM pauses))"
UNPAUSED: Final[Mapping[WorkTable, str]] = {
    "deliveries": "true",
    "predictions": f"(NOT EXISTS (SELECT FROM pauses) OR predictions.provider <> {_PAUSED}) AND {breakers.API_ALLOWS}",
    "outputs": f"""(state <> 'waiting' OR NOT EXISTS (SELECT FROM pauses)
                OR 'keep' <> {_PAUSED}
               AND (SELECT provider FROM predictions p WHERE p.id = outputs.prediction_id) <> {_PAUSED})""",
    "notifications": "true",
}


def for_each(sql: str) -> dict[WorkTable, str]:
    return {t: sql.format(table=t, subject=SUBJECT[t], job=JOB_ID[t], unpaused=UNPAUSED[t]) for t in SUBJECT}


SET_LEASE: Final = (
    "attempt = attempt + 1, crashes = crashes + 1, lease_token = %(token)s, leased_by = %(leased_by)s,"
    " leased_until = moment() + make_interval(secs => %(lease_seconds)s)"
)
CLAIM = for_each(f"""
UPDATE {{table}} SET {SET_LEASE}
 WHERE id = (SELECT id FROM {{table}}
              WHERE id = %(id)s AND state = ANY(%(states)s::text[]) AND lease_token IS NULL
                AND run_at <= moment() AND crashes < %(max_crashes)s
                AND {{unpaused}} FOR UPDATE SKIP LOCKED)
RETURNING id, moment() AS claimed_at, attempt, crashes
""")
CLAIM["predictions"] = f"""
WITH claimed AS ({CLAIM["predictions"].rstrip()}, provider, state
), probe AS ({breakers.DELAY_PROBE} AND target = 'api ' || (SELECT provider FROM claimed WHERE state <> 'planned')
) SELECT id, claimed_at, attempt, crashes FROM claimed
"""


def claim(
    database: Database | Connection,
    step: Step,
    row_id: UUID,
    *,
    leased_by: str,
    lease_seconds: float,
    max_crashes: int,
) -> Lease | None:
    """Claim a due, unleased row; return None if there is none, it is paused, or it reached the crash limit."""
    token, (table, states, _) = uuid.uuid4(), WORK[step]
    args = {"id": row_id, "states": list(states), "max_crashes": max_crashes, "token": token, "leased_by": leased_by}
    rows = database.fetch_all(CLAIM[table], {**args, "lease_seconds": lease_seconds})
    facts = [(row["claimed_at"], row["attempt"], row["crashes"]) for row in rows]
    return Lease(table, row_id, token, leased_by, *facts[0]) if facts else None


RENEW = for_each("""
UPDATE {table} SET leased_until = moment() + make_interval(secs => %(lease_seconds)s)
 WHERE id = ANY(%(ids)s::uuid[]) AND lease_token = ANY(%(tokens)s::uuid[]) RETURNING id
""")


def renew(conn: Connection, *leases: Lease, lease_seconds: float) -> bool:
    """Extend leases on a table, also expired ones that were not released; return False if all are lost."""
    args = {"ids": [lease.row_id for lease in leases], "tokens": [lease.token for lease in leases]}
    return bool(fetch_all(conn, RENEW[leases[0].table], {**args, "lease_seconds": lease_seconds}))


@statement(for_each("SELECT id FROM {table} WHERE id = %(id)s AND lease_token = %(token)s"))
def is_current(conn: Connection, lease: Lease) -> bool:
    """Return True if the row still has the lease's token. Decides whether an uncertain COMMIT took place."""


_RESCHEDULE: Final = for_each(f"""
WITH moved AS (
    UPDATE {{table}}
       SET {CLEAR_LEASE}, attempt = attempt - CASE WHEN %(counts_as_error)s THEN 0 ELSE 1 END, woken_at = NULL,
           run_at = moment() + make_interval(secs => greatest(%(wait_seconds)s, 0)), reason = %(reason)s
     WHERE id = %(id)s AND lease_token = %(token)s
    RETURNING id, {{job}} AS job_id, state
) {build_event_insert("{subject}", "state", "state", "%(reason)s", kind="%(kind)s")}
""")


@statement(_RESCHEDULE)
def reschedule(
    conn: Connection,
    lease: Lease,
    *,
    wait_seconds: float,
    reason: str,
    counts_as_error: bool,
    kind: EventKind = "attempt_failed",
) -> None:
    """
    End the lease and make the row due again after a wait. Raises LeaseLost. `counts_as_error`: False if the worker is
    stopping or an internal service failed.
    """


def hand_back(conn: Connection, lease: Lease, error: StepInterrupted | DatabaseLocked) -> None:
    """End the lease of a step that did not run to its end through no fault of the row. Raises LeaseLost."""
    wait = error.retry_after or 0.0 if isinstance(error, DatabaseLocked) else 0.0
    reschedule(conn, lease, wait_seconds=wait, reason=str(error), counts_as_error=False, kind=error.event_kind)


def execute(conn: Connection, lease: Lease, sql: str, **args: object) -> Row:
    """Execute a statement with `id`, `token` and `actor` of a lease; return its row. Raises LeaseLost without one."""
    return require_row(lease, fetch_one(conn, sql, build_args(lease, **args)))


def build_args(lease: Lease, **args: object) -> Row:
    return {"id": lease.row_id, "token": lease.token, "actor": lease.leased_by, "reason": None, **args}


def build_end_statement(table: WorkTable, from_state: str, to_state: str, values: str, condition: str = "") -> str:
    """Return the statement that ends a leased row; `values` are its assignments in addition to the work columns."""
    return f"""
WITH moved AS (
    UPDATE {table} SET state = '{to_state}', {CLEAR_LEASE}, run_at = NULL, ended_at = moment(), {values}
     WHERE id = %(id)s AND lease_token = %(token)s AND state = '{from_state}' {condition}
    RETURNING id, {JOB_ID[table]} AS job_id
) {build_event_insert(SUBJECT[table], f"'{from_state}'", f"'{to_state}'", "%(reason)s")}
"""


# A release records the lease: the audit compares it with object keys, which contain the lease that stored them.
def _build_release(condition: str, kind: EventKind, reason: str) -> dict[WorkTable, str]:
    return for_each(f"""
WITH held AS MATERIALIZED (
    SELECT id, left(lease_token::text, 8) AS lease FROM {{table}} WHERE lease_token IS NOT NULL AND {condition}
), moved AS (
    UPDATE {{table}} t SET lease_token = NULL, leased_by = NULL, leased_until = NULL, woken_at = NULL
      FROM held WHERE t.id = held.id
    RETURNING t.id, {{job}} AS job_id, t.state, held.lease
) {build_event_insert("{subject}", "state", "state", reason, kind=f"'{kind}'", lease="lease")}
""")


RELEASE_HELD_BY = _build_release(
    "leased_by = %(actor)s FOR UPDATE SKIP LOCKED", "worker_died", "%(reason)s || ' (lease ' || lease || ')'"
)


def release_held_by(conn: Connection, leased_by: str, reason: str) -> list[tuple[WorkTable, UUID]]:
    """Release the rows of a dead worker process, which counts as a crash of each; return them, without locked ones."""
    args = {"actor": leased_by, "reason": reason}
    return [(table, row["id"]) for table in SUBJECT for row in fetch_all(conn, RELEASE_HELD_BY[table], args)]


# A promoted standby continues on a new timeline. The first one that is seen, at the epoch, is no promotion.
@statement("""
WITH present AS (SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline)
INSERT INTO cursors (sweep, place, after_key, moved_at) SELECT 'timeline', timeline, '', 'epoch' FROM present
 WHERE NOT EXISTS (SELECT FROM cursors WHERE sweep = 'timeline' AND place = timeline)
ON CONFLICT (sweep) DO UPDATE SET place = excluded.place, moved_at = clock_timestamp()
""")
def record_timeline(conn: Connection) -> None:
    """Record PostgreSQL's timeline, and when it changed. Raises psycopg.Error on a server that has none."""


# A lease that expired while PostgreSQL was unavailable may be in use: its holder could not renew it. So it ends only
# after several runs of the sweep since its last renewal, and not in the first 30 s after a start or promotion.
RELEASE_EXPIRED = _build_release(
    "leased_until < moment() AND (%(row_id)s::uuid IS NULL OR id = %(row_id)s)"
    " AND pg_postmaster_start_time() < clock_timestamp() - interval '30 s'"
    " AND NOT EXISTS (SELECT FROM cursors WHERE sweep = 'timeline'"
    " AND moved_at BETWEEN clock_timestamp() - interval '30 s' AND clock_timestamp())"
    " AND (SELECT count(*) FROM ticks WHERE sweep = 'reconcile'"
    " AND started_at > leased_until - make_interval(secs => %(lease_seconds)s)) >= %(min_ticks)s"
    " ORDER BY leased_until LIMIT 500 FOR UPDATE SKIP LOCKED",
    "lease_expired",
    "'the lease ' || lease || ' expired: its worker has died or hangs'",
)


@statement(RELEASE_EXPIRED)
def release_expired(
    conn: Connection, table: WorkTable, actor: str, *, lease_seconds: float, min_ticks: int, row_id: UUID | None = None
) -> list[UUID]:
    """
    Release expired leases, or that of one row, which counts as a crash of each row; return the rows, at most 500.

    `min_ticks`: runs of the reconcile sweep since the last renewal, in all of which it could have been renewed.
    """


_PLANNED: Final = ("planned", "submitting")
# The rows of a step: their table and states, and which of them dispatch wakes.
WORK: Final[Mapping[Step, tuple[WorkTable, tuple[str, ...], str]]] = {
    "ingest": ("deliveries", ("new", "unmatched"), ""),
    "submit": ("predictions", _PLANNED, " AND state = 'submitting' AND provider <> ALL (%(synchronous)s::text[])"),
    "generate": ("predictions", _PLANNED, " AND state = 'submitting' AND provider = ANY (%(synchronous)s::text[])"),
    "poll": ("predictions", ("running", "abandoned"), ""),
    "keep": ("outputs", ("waiting",), ""),
    "discard": ("outputs", ("discarding",), ""),
    "notify": ("notifications", ("waiting",), ""),
}
IN_STATES: Final = {step: "state IN ('" + "', '".join(states) + "')" for step, (_, states, _) in WORK.items()}
# Due rows for dispatch, most urgent first; `submission_turns` chooses planned predictions. With an empty queue earlier
# wakes are lost: woken_at is ignored. Step keep has its own (db/output_claims.py).
DUE: Final[Mapping[Step, str]] = {
    step: f"""
WITH due AS MATERIALIZED (
    SELECT id FROM {table}
     WHERE {IN_STATES[step]} AND {UNPAUSED[table]}{more} AND lease_token IS NULL AND run_at <= moment()
       AND (%(queue_is_empty)s OR woken_at IS NULL OR woken_at < moment() - interval '30 s')
     ORDER BY run_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
UPDATE {table} SET woken_at = moment() WHERE id = ANY (ARRAY(SELECT id FROM due)) RETURNING id
"""
    for step, (table, _, more) in WORK.items()
    if step != "keep"
}
# Whether a step may have something to do. Rows that are woken or paused count, too: so it costs one look at an index.
_IS_DUE: Final = "(SELECT run_at FROM {} WHERE {} AND lease_token IS NULL ORDER BY run_at LIMIT 1) <= moment()"
_IS_SUBMIT_DUE: Final = " OR ".join(_IS_DUE.format("predictions", f"state = '{s}'") for s in _PLANNED)
IS_DUE: Final = {
    step: _IS_SUBMIT_DUE if states == _PLANNED else _IS_DUE.format(table, IN_STATES[step])
    for step, (table, states, _) in WORK.items()
}


@statement(DUE)
def wake_due(
    conn: Connection, step: Step, *, limit: int, queue_is_empty: bool, synchronous: Sequence[str] = ()
) -> list[UUID]:
    """
    Mark the most urgent due rows of a step as woken and return them; none twice within 30 s, unless the queue is empty.

    `synchronous`: providers that return files in the response; step generate submits to them, submit to the others.
    """


@statement(for_each("SELECT state FROM {table} WHERE id = %(row_id)s"))
def get_state(conn: Connection, table: WorkTable, row_id: UUID) -> str | None: ...
