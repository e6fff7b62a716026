"""Jobs: requests of applications. The lock on the job's row serializes all changes to its rows."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from psycopg.types.json import Jsonb

from db import notifications, progress
from db.connection import Connection, QueuedQuery, Row, fetch_one
from db.events import build_event_insert
from db.statements import statement
from moorage import ids
from moorage.lifecycle import OutputCounts
from moorage.model import Job, JobRequest

_COLUMNS = (
    "id, owner, kind, project_id, scene, partial, chosen_id, state, deadline_at, reopened, fallback_chain, placeholder,"
    " variants, prompt IS NULL AND fallback_chain IS NULL AS is_undescribed"
)

# ON CONFLICT waits for a concurrent transaction with the same key; then this one inserts nothing.
ADD = f"""
WITH moved AS (
    INSERT INTO jobs (id, owner, kind, mode, room_type, style, prompt, variants, project_id, scene, partial,
                      fallback_chain, placeholder, notify, notify_url, metadata, idempotency_key, request_sha256,
                      state, deadline_at, run_at)
    VALUES (%(id)s, %(owner)s, %(kind)s, %(mode)s, %(room_type)s, %(style)s, %(prompt)s, %(variants)s, %(project_id)s,
            %(scene)s, %(partial)s, %(fallback_chain)s, %(placeholder)s, %(notify)s, %(notify_url)s, %(metadata)s,
            %(idempotency_key)s, %(request_sha256)s, 'open', moment() + %(deadline)s, moment() + %(deadline)s)
    ON CONFLICT (owner, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING id
) {build_event_insert("job", "NULL", "'open'", "%(reason)s", job_id="id")}
"""


def queue_add(conn: Connection, job_id: UUID, request: JobRequest, *, notify: bool, actor: str) -> QueuedQuery:
    """Insert an open job with its fallback chain; no row if its owner has used the idempotency key."""
    args: dict[str, Any] = {**asdict(request), "reason": f"fallback chain of {len(request.fallback_chain)}"}
    args |= {"scene": None if request.scene is None else Jsonb(request.scene), "notify": notify, "actor": actor}
    args |= {"id": job_id, "deadline": timedelta(seconds=request.deadline_seconds), "metadata": Jsonb(request.metadata)}
    return conn.queue(ADD, {**args, "fallback_chain": Jsonb(args["fallback_chain"])})


LOCK = f"SELECT {_COLUMNS} FROM jobs WHERE id = %(job_id)s FOR UPDATE /* planned */\n"


@statement(LOCK)
def lock(conn: Connection, job_id: UUID) -> Job:
    """Lock a job: before its predictions, outputs, project and render. Raises LookupError."""


@statement(f"""
SELECT {_COLUMNS} FROM jobs
 WHERE id = ANY (ARRAY(SELECT job_id FROM predictions
                        WHERE (provider, external_id) IN
                              (SELECT * FROM unnest(%(providers)s::text[], %(external_ids)s::text[]))))
 ORDER BY id FOR UPDATE SKIP LOCKED /* planned */
""")
def queue_lock(conn: Connection, providers: Sequence[str], external_ids: Sequence[str]) -> QueuedQuery:
    """Lock the jobs of predictions, given by provider and external id, but none that is locked."""


@statement("UPDATE jobs SET prompt = %(prompt)s WHERE id = %(job_id)s AND prompt IS NULL")
def queue_description(conn: Connection, job_id: UUID, prompt: str) -> QueuedQuery:
    """Record the prompt of a registered prediction, as its provider reports it, on its locked job."""


@statement("""
SELECT count(*) FILTER (WHERE state = 'waiting') AS waiting,
       count(*) FILTER (WHERE state = 'kept' AND is_chosen) AS kept,
       count(*) FILTER (WHERE state IN ('dead', 'discarding', 'discarded') AND is_chosen AND NOT is_foreign) AS dead,
       count(*) FILTER (WHERE state = 'kept' AND is_placeholder) AS placeholders,
       count(*) FILTER (WHERE state = 'dead' AND is_chosen AND is_foreign) AS foreign,
       count(*) FILTER (WHERE is_deferred AND NOT is_chosen) AS others,
       count(*) FILTER (WHERE is_deferred AND NOT is_chosen AND category IS NULL) AS reserve
  FROM (SELECT CASE WHEN o.state = 'waiting' AND o.deferred_at IS NOT NULL THEN 'dead' ELSE o.state END AS state,
               o.state = 'waiting' AND o.deferred_at IS NOT NULL AS is_deferred,
               o.is_placeholder, o.category, o.category IS NOT DISTINCT FROM 'FOREIGN_HOST' AS is_foreign,
               o.prediction_id = j.chosen_id AND NOT o.is_placeholder AS is_chosen
          FROM outputs o JOIN jobs j ON j.id = o.job_id WHERE o.job_id = %(job_id)s) counted /* planned */
""")
def count_outputs(conn: Connection, job_id: UUID) -> OutputCounts:
    """Count a locked job's outputs (a deferred one as dead), in a statement that sees what the lock waited for."""


CHANGE_STATE = f"""
WITH moved AS (
    UPDATE jobs j SET state = %(to_state)s, chosen_id = coalesce(c.chosen_id, j.chosen_id), category = %(category)s,
           reason = c.reason, run_at = CASE WHEN %(live)s THEN moment() + %(check_after)s END,
           settled_at = CASE WHEN %(live)s THEN NULL ELSE moment() END,
           deadline_at = CASE WHEN %(to_state)s = 'open' THEN moment() + %(check_after)s ELSE deadline_at END,
           reopened = reopened + CASE WHEN %(live)s AND settled_at IS NOT NULL THEN 1 ELSE 0 END
      FROM unnest(%(ids)s::uuid[], %(from_states)s::text[], %(chosen_ids)s::uuid[], %(reasons)s::text[],
                  %(notification_ids)s::uuid[]) AS c (id, from_state, chosen_id, reason, notification_id)
     WHERE j.id = c.id AND j.state = c.from_state
    RETURNING j.id, j.state, j.reason, j.settled_at, j.notify, c.from_state, c.notification_id
), event AS (
    INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
    SELECT 'job', id, id, from_state, state, reason, %(actor)s FROM moved
    RETURNING id, subject_id
), {notifications.ADD_FOR_JOB_END}
SELECT subject_id AS id FROM event /* planned */
"""

CHECK_AFTER = timedelta(minutes=5)  # when a sweep counts the outputs of a keeping job again, in case it was not settled


_LIVE: Final = ("open", "keeping")


def change_state(
    conn: Connection,
    job: Job,
    to_state: str,
    *,
    actor: str,
    reason: str | None = None,
    category: str | None = None,
    chosen_id: UUID | None = None,
    check_after: timedelta = CHECK_AFTER,
) -> None:
    """
    Change the state of a locked job, with its event and, if requested, its notification; update its project's status.

    `check_after`: to `keeping`: when a sweep counts its outputs again; to `open`: the new deadline.
    """
    args = build_change([(job, reason, chosen_id)], to_state, category=category, check_after=check_after)
    if fetch_one(conn, CHANGE_STATE, {**args, "actor": actor}) is None:
        raise LookupError(f"job {job.id} is not {job.state}: it was not locked")
    if job.project is not None and (to_state in _LIVE) != (job.state in _LIVE):
        progress.update_status(conn, job.project)


def build_change(
    changes: Sequence[tuple[Job, str | None, UUID | None]],
    to_state: str,
    *,
    category: str | None = None,
    check_after: timedelta = CHECK_AFTER,
) -> Row:
    """Return the arguments of CHANGE_STATE for locked jobs, each with its reason and chosen prediction."""
    jobs, reasons, chosen_ids = zip(*changes, strict=True)
    args = {"ids": [job.id for job in jobs], "from_states": [job.state for job in jobs], "reasons": list(reasons)}
    args |= {"chosen_ids": list(chosen_ids), "notification_ids": [ids.uuid7() for _ in jobs]}
    return {**args, "to_state": to_state, "live": to_state in _LIVE, "check_after": check_after, "category": category}


@statement("""
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
SELECT 'job', id, id, state, state, note, %(actor)s FROM jobs, unnest(%(notes)s::text[]) AS note WHERE id = %(job_id)s
""")
def add_notes(conn: Connection, job_id: UUID, notes: Sequence[str], actor: str) -> None:
    """Add notes to the history of a locked job that is `keeping`; its state is unchanged."""


IS_DUE: Final = "state IN ('open', 'keeping') AND run_at <= moment()"


@statement(f"""
SELECT id FROM jobs j WHERE {IS_DUE}
   AND (project_id IS NULL OR EXISTS (SELECT FROM projects p WHERE (p.owner, p.id) = (j.owner, j.project_id)
                                         FOR NO KEY UPDATE SKIP LOCKED))
 ORDER BY run_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
""")
def list_due(conn: Connection, limit: int = 100) -> list[UUID]:
    """Return jobs that are due and not locked, nor their projects: they would keep the others out of the limit."""


@statement("""
UPDATE jobs SET run_at = moment() + %(wait)s WHERE id = (
    SELECT id FROM jobs WHERE id = %(job_id)s AND run_at <= moment() FOR NO KEY UPDATE SKIP LOCKED) RETURNING id
""")
def postpone(conn: Connection, job_id: UUID, wait: timedelta) -> bool:
    """Postpone the next check of a job; return False if it is locked, or not due, for example reopened."""


@statement("""
SELECT j.id, j.owner, j.kind, j.mode, j.room_type, j.style, j.prompt, j.project_id, j.scene, j.partial, j.state,
       j.category, j.reason, j.created_at, j.deadline_at, j.settled_at, j.reopened, j.chosen_id, j.run_at,
       j.variants, j.placeholder, j.metadata, coalesce((SELECT jsonb_agg(e - 'input' ORDER BY n)
                                              FROM jsonb_array_elements(j.fallback_chain)
                                                     WITH ORDINALITY AS x (e, n)), '[]') AS chain,
       r.id AS render_id, r.cover_idx, r.published_at, r.deleted_at,
       (SELECT count(*) FROM render_variants v WHERE v.render_id = j.id) AS variants_created
  FROM jobs j LEFT JOIN renders r ON r.id = j.id WHERE j.id = %(job_id)s
""")
def get_with_render(conn: Connection, job_id: UUID) -> Row | None: ...


@statement("SELECT 1 WHERE NOT EXISTS (SELECT FROM jobs WHERE id = %(job_id)s AND settled_at IS NULL)")
def is_settled(conn: Connection, job_id: UUID) -> bool:
    """Return False only for a job that exists and is not settled."""


@statement("""
SELECT 'output' AS subject, o.id AS subject_id, o.prediction_id, o.idx, o.path, o.category AS type, o.reason AS message,
       o.state, o.category, o.reason, coalesce(d.retryable, false) AS retryable, d.id AS dead_letter_id
  FROM outputs o
  LEFT JOIN dead_letters d ON d.subject = 'output' AND d.subject_id = o.id AND d.state = 'open'
 WHERE o.job_id = %(job_id)s AND o.category IS NOT NULL
   AND (o.state = 'dead' OR o.state = 'waiting' AND o.deferred_at IS NOT NULL)
 UNION ALL
SELECT 'prediction', p.id, p.id, NULL, NULL, p.category, p.reason, p.state, p.category, p.reason,
       coalesce(d.retryable, false), d.id
  FROM predictions p
  LEFT JOIN dead_letters d ON d.subject = 'prediction' AND d.subject_id = p.id AND d.state = 'open'
 WHERE p.job_id = %(job_id)s AND p.state IN ('failed', 'cancelled', 'lost', 'abandoned') ORDER BY 1, 4
""")
def list_errors(conn: Connection, job_id: UUID) -> list[Row]: ...


# `= ANY` and the order by owner: else the planner looks for an owner's jobs among all, which are long if they are old.
@statement("""
SELECT j.id, j.owner, j.kind, j.state, j.project_id, j.category, j.reason, j.created_at, j.deadline_at, j.settled_at,
       j.reopened, r.id AS render_id, o.outputs, o.kept
  FROM jobs j
  LEFT JOIN renders r ON r.id = j.id AND r.deleted_at IS NULL
 CROSS JOIN LATERAL (SELECT count(*) AS outputs, count(*) FILTER (WHERE state = 'kept') AS kept
                       FROM outputs WHERE job_id = j.id AND prediction_id = j.chosen_id) o
 WHERE (%(owner)s::text IS NULL OR j.owner = ANY(ARRAY[%(owner)s]))
   AND (%(state)s::text IS NULL OR j.state = %(state)s)
   AND (%(kind)s::text IS NULL OR j.kind = %(kind)s)
   AND (%(before)s::uuid IS NULL OR j.id < %(before)s)
 ORDER BY CASE WHEN %(owner)s::text IS NOT NULL THEN j.owner END DESC, j.id DESC LIMIT %(limit)s
""")
def list_page(conn: Connection, filters: Mapping[str, Any], limit: int) -> list[Row]:
    """Return jobs, newest first, with their numbers of files; `filters`: owner, state, kind, before."""


@statement("""
SELECT j.id, j.state, j.request_sha256,
       (SELECT p.id FROM predictions p WHERE p.job_id = j.id ORDER BY p.seq LIMIT 1) AS prediction_id
  FROM jobs j WHERE j.owner = %(owner)s AND j.idempotency_key = %(key)s
""")
def find_by_key(conn: Connection, owner: str, key: str) -> Row | None: ...
