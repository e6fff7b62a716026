"""Submissions: predictions that moorage itself has a provider make, from planned to running."""

from datetime import timedelta
from typing import Any, NamedTuple
from uuid import UUID

from db.connection import Connection, fetch_one
from db.leases import CLEAR_LEASE
from moorage import ids
from moorage.errors import LeaseLost
from moorage.model import FallbackEntry, Job, Lease, Prediction

SUBMIT_STATES = ("planned", "submitting")

PLAN = """
WITH made AS (
    INSERT INTO predictions (id, job_id, seq, entry, provider, model, state, deadline_at, run_at)
    SELECT %(id)s, j.id, (SELECT coalesce(max(seq) + 1, 0) FROM predictions WHERE job_id = j.id), %(entry)s,
           %(provider)s, %(model)s, 'planned', j.deadline_at, moment()
      FROM jobs j WHERE j.id = %(job_id)s
    RETURNING id, job_id
)
INSERT INTO events (subject, subject_id, job_id, to_state, reason, actor)
SELECT 'prediction', id, job_id, 'planned', %(reason)s, %(actor)s FROM made
RETURNING subject_id AS id
"""


def plan(
    conn: Connection, job_id: UUID, entry_index: int, entry: FallbackEntry, *, reason: str | None, actor: str
) -> UUID:
    """Insert the next prediction of a locked (or just inserted) job, to be submitted now; returns its id."""
    args: dict[str, Any] = {
        "id": ids.uuid7(),
        "job_id": job_id,
        "entry": entry_index,
        "provider": entry.provider,
        "model": entry.model,
        "reason": reason,
        "actor": actor,
    }
    row = fetch_one(conn, PLAN, args)
    if row is None:
        raise LookupError(f"there is no job {job_id}")
    return UUID(str(row["id"]))


# What we stopped ourselves, for another's success, says nothing about its entry.
FOLLOWING = """
SELECT entry + CASE WHEN state = 'cancelled' AND (submitted_at IS NULL OR cancel_reason IS NOT NULL) THEN 0
                    ELSE 1 END AS entry
  FROM predictions WHERE job_id = %(job_id)s AND entry IS NOT NULL
 ORDER BY seq DESC LIMIT 1
"""


def get_next_entry_index(conn: Connection, job_id: UUID) -> int:
    """
    Return the entry that comes next in a job's chain, which may be one past its end; a retry begins at 0 again.

    One that was stopped before it could end, or be submitted, has its turn again.
    """
    row = fetch_one(conn, FOLLOWING, {"job_id": job_id})
    return row["entry"] if row else 0


def parse_fallback_chain(job: Job) -> list[FallbackEntry]:
    """Return a job's chain; empty where the application started the prediction itself."""
    return [FallbackEntry(**entry) for entry in job.chain or ()]


def get_entry(job: Job, prediction: Prediction) -> FallbackEntry | None:
    """Return the entry of its job's chain that a prediction is a try of; None: moorage did not plan it."""
    chain = parse_fallback_chain(job)
    return chain[prediction.entry] if prediction.entry is not None and prediction.entry < len(chain) else None


# Transactions that count a provider's predictions come one after the other, each with a snapshot of its own.
TAKE_TURN = "SELECT pg_advisory_xact_lock(hashtextextended('moorage.submit ' || %(provider)s, 0))"
AT_WORK = """
SELECT count(*) AS n FROM predictions
 WHERE provider = %(provider)s AND state IN ('submitting', 'running') AND entry IS NOT NULL
"""


def has_capacity(conn: Connection, provider: str, limit: int) -> bool:
    """
    Return whether fewer than `limit` orders of a provider are at work; true until this transaction ends.

    Predictions that applications started themselves do not count: waiting would not make them fewer.
    """
    conn.execute(TAKE_TURN, {"provider": provider})
    row = fetch_one(conn, AT_WORK, {"provider": provider})
    return row is not None and row["n"] < limit


BEGIN = """
WITH moved AS (
    UPDATE predictions
       SET state = 'submitting', key_sha256 = %(key_sha256)s, submitted_at = moment(), polls = 0, reason = NULL,
           category = NULL, cancel_reason = NULL, deadline_at = least(deadline_at, moment() + %(seconds)s)
     WHERE id = %(id)s AND lease_token = %(token)s AND state = 'planned'
    RETURNING id, job_id
)
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, actor)
SELECT 'prediction', id, job_id, 'planned', 'submitting', %(actor)s FROM moved
RETURNING subject_id AS id
"""


def mark_submitting(conn: Connection, lease: Lease, *, key_sha256: str, deadline_seconds: float) -> None:
    """Say that a planned prediction is about to be sent, under this key; its time limit begins. It stays leased."""
    _must(conn, BEGIN, lease, key_sha256=key_sha256, seconds=timedelta(seconds=deadline_seconds), actor=lease.leased_by)


WAIT = f"""
UPDATE predictions
   SET {CLEAR_LEASE}, woken_at = NULL, attempt = attempt - 1, polls = polls + %(looked)s,
       run_at = moment() + make_interval(secs => %(wait_seconds)s)
 WHERE id = %(id)s AND lease_token = %(token)s
RETURNING id
"""


def postpone(conn: Connection, lease: Lease, *, wait_seconds: float, has_searched: bool = False) -> None:
    """Come again after a wait that is no failure: no room at the provider, or the time of the next look."""
    _must(conn, WAIT, lease, wait_seconds=max(wait_seconds, 0.0), looked=int(has_searched))


BACK = f"""
WITH moved AS (
    UPDATE predictions
       SET state = 'planned', {CLEAR_LEASE}, woken_at = NULL, key_sha256 = NULL, submitted_at = NULL,
           reason = %(reason)s,
           attempt = attempt - CASE WHEN %(counted)s THEN 0 ELSE 1 END,
           deadline_at = (SELECT j.deadline_at FROM jobs j WHERE j.id = predictions.job_id),
           run_at = moment() + make_interval(secs => %(wait_seconds)s)
     WHERE id = %(id)s AND lease_token = %(token)s AND state = 'submitting'
    RETURNING id, job_id
)
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
SELECT 'prediction', id, job_id, 'submitting', 'planned', %(reason)s, %(actor)s FROM moved
RETURNING subject_id AS id
"""


def return_to_planned(
    conn: Connection, lease: Lease, *, wait_seconds: float, reason: str, counts_as_error: bool
) -> None:
    """Plan a prediction again that was certainly not made; `counted`: as an error."""
    args = {
        "wait_seconds": max(wait_seconds, 0.0),
        "reason": reason,
        "counted": counts_as_error,
        "actor": lease.leased_by,
    }
    _must(conn, BACK, lease, **args)


RUN = f"""
WITH moved AS (
    UPDATE predictions
       SET state = 'running', external_id = %(external_id)s, {CLEAR_LEASE}, woken_at = NULL, attempt = crashes - 1,
           polls = 0, reason = NULL,
           run_at = CASE WHEN cancel_reason IS NULL THEN least(moment() + %(first_poll)s, deadline_at)
                         ELSE moment() END
     WHERE id = %(id)s AND lease_token = %(token)s AND state = 'submitting'
       AND NOT EXISTS (SELECT FROM predictions k
                        WHERE k.provider = predictions.provider AND k.external_id = %(external_id)s)
    RETURNING id, job_id
)
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
SELECT 'prediction', id, job_id, 'submitting', 'running', %(reason)s, %(actor)s FROM moved
RETURNING subject_id AS id
"""


def mark_running(conn: Connection, lease: Lease, external_id: str, *, first_poll_seconds: float, reason: str) -> bool:
    """Record that the provider took it, and end the lease; False when another row has the provider's id already."""
    args = {
        **_named(lease),
        "external_id": external_id,
        "first_poll": timedelta(seconds=first_poll_seconds),
        "reason": reason,
        "actor": lease.leased_by,
    }
    return fetch_one(conn, RUN, args) is not None


ABANDON = f"""
WITH moved AS (
    UPDATE predictions
       SET state = 'abandoned', {CLEAR_LEASE}, woken_at = NULL, attempt = crashes - 1, category = 'PROVIDER_FAILED',
           reason = %(reason)s, output_until = moment() + %(life)s, run_at = moment() + %(life)s
     WHERE id = %(id)s AND lease_token = %(token)s AND state = 'submitting'
    RETURNING id, job_id
)
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
SELECT 'prediction', id, job_id, 'submitting', 'abandoned', %(reason)s, %(actor)s FROM moved
RETURNING subject_id AS id
"""


def abandon(conn: Connection, lease: Lease, *, output_life_seconds: float, reason: str) -> None:
    """Stop waiting for what nobody knows the fate of; its webhook still counts until the output life ends."""
    _must(conn, ABANDON, lease, life=timedelta(seconds=output_life_seconds), reason=reason, actor=lease.leased_by)


IS_SECOND = """
SELECT p.id FROM predictions p
  JOIN predictions b ON b.job_id = p.job_id AND b.entry = p.entry AND b.seq = p.seq - 1
 WHERE p.id = %(id)s AND b.external_id IS NULL AND b.reason LIKE 'submit uncertain:%%'
"""


def is_second(conn: Connection, prediction_id: UUID) -> bool:
    """Return whether the try just before this one was the same entry, and nobody knows what became of it."""
    return fetch_one(conn, IS_SECOND, {"id": prediction_id}) is not None


BY_KEY = """
SELECT id, job_id FROM predictions WHERE key_sha256 = %(key_sha256)s AND provider = %(provider)s
"""


class PredictionRef(NamedTuple):
    """The ids of a prediction and of its job."""

    prediction_id: UUID
    job_id: UUID


def find_by_webhook_key(conn: Connection, provider: str, key_sha256: str) -> PredictionRef | None:
    """Return the ids of the prediction that was submitted with a key, and of its job; None: there is none."""
    row = fetch_one(conn, BY_KEY, {"provider": provider, "key_sha256": key_sha256})
    return PredictionRef(row["id"], row["job_id"]) if row else None


# The lease of the request that is under way, or of a look, ends: its own write-back then finds it gone and stops.
BIND = """
WITH old AS (
    SELECT id, state FROM predictions
     WHERE id = %(id)s AND external_id IS NULL AND state IN ('submitting', 'abandoned', 'lost') FOR UPDATE
), moved AS (
    UPDATE predictions p
       SET state = CASE old.state WHEN 'submitting' THEN 'running' ELSE old.state END,
           external_id = %(external_id)s, woken_at = NULL, polls = 0,
           run_at = CASE WHEN old.state = 'lost' THEN NULL
                         WHEN p.cancel_reason IS NOT NULL THEN moment()
                         ELSE least(moment() + %(first_poll)s, coalesce(p.output_until, p.deadline_at)) END,
           crashes = p.crashes - CASE WHEN p.lease_token IS NULL THEN 0 ELSE 1 END,
           attempt = p.crashes - CASE WHEN p.lease_token IS NULL THEN 0 ELSE 1 END,
           lease_token = NULL, leased_by = NULL, leased_until = NULL
      FROM old WHERE p.id = old.id
    RETURNING p.id, p.job_id, old.state AS from_state, p.state AS to_state
), told AS (
    INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
    SELECT 'prediction', id, job_id, from_state, to_state, %(reason)s, %(actor)s FROM moved WHERE from_state <> 'lost'
)
SELECT id FROM moved
"""


def assign_external_id(
    conn: Connection, prediction: Prediction, external_id: str, *, first_poll_seconds: float, reason: str, actor: str
) -> bool:
    """Give a locked prediction the id its webhook names; False when it has one, or does not wait for one."""
    args = {
        "id": prediction.id,
        "external_id": external_id,
        "first_poll": timedelta(seconds=first_poll_seconds),
        "reason": reason,
        "actor": actor,
    }
    return fetch_one(conn, BIND, args) is not None


def _named(lease: Lease) -> dict[str, Any]:
    return {"id": lease.row_id, "token": lease.token}


def _must(conn: Connection, sql: str, lease: Lease, **args: Any) -> None:
    if fetch_one(conn, sql, {**_named(lease), **args}) is None:
        raise LeaseLost(f"prediction {lease.row_id}: the lease is lost")
