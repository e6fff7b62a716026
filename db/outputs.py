"""Outputs: the files of chosen predictions, one unit of work each."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from uuid import UUID

from db import dead_letters, discarding, jobs, leases, quarantine
from db.connection import Connection, QueuedQuery, Row, fetch_one
from db.events import build_event_insert, records
from db.statements import statement
from moorage.model import Job, Lease, Output, Step, StoredOutput
from moorage.provider_types import OutputFile
from moorage.retry_policy import SOURCE_KINDS, DeadLetterDecision, RetryContext
from moorage.text import to_storable

RESERVE_WAIT = timedelta(seconds=30)  # until its next attempt, which finds whether its job needs it by then
FOREIGN_HOST = "FOREIGN_HOST"  # category of an output that makes no job partial; its dead letter has DOWNLOAD_FAILED

ADD = f"""
WITH moved AS (
    INSERT INTO outputs (id, job_id, prediction_id, idx, path, source_kind, source, source_data, expires_at, state,
                         category, reason, run_at, woken_at, ended_at, deferred_at)
    SELECT n.id, job_id, prediction_id,
           (SELECT coalesce(max(idx) + 1, 0) FROM outputs o WHERE o.job_id = n.job_id)
             + (row_number() OVER (PARTITION BY job_id ORDER BY place))::integer - 1,
           path, source_kind, source, source_data, expires_at,
           CASE WHEN problem IS NULL THEN 'waiting' ELSE 'dead' END, category, problem,
           CASE WHEN problem IS NULL THEN moment() + %(wait)s END, CASE WHEN problem IS NULL THEN moment() END,
           CASE WHEN problem IS NULL THEN NULL ELSE moment() END,
           CASE WHEN problem IS NULL AND %(in_reserve)s THEN moment() END
      FROM unnest(%(id)s::uuid[], %(job_id)s::uuid[], %(prediction_id)s::uuid[], %(path)s::text[],
                  %(source_kind)s::text[], %(source)s::text[], %(source_data)b::bytea[],
                  %(expires_at)s::timestamptz[], %(problem)s::text[], %(category)s::text[]) WITH ORDINALITY
           AS n (id, job_id, prediction_id, path, source_kind, source, source_data, expires_at, problem, category,
                 place)
     WHERE NOT EXISTS (SELECT FROM outputs o WHERE o.prediction_id = n.prediction_id AND o.path = n.path)
     ORDER BY place
    ON CONFLICT (prediction_id, path) DO NOTHING
    RETURNING id, job_id, state, coalesce(reason, path) AS reason,
              CASE WHEN deferred_at IS NOT NULL THEN 'deferred' END AS kind
) {build_event_insert("output", "NULL", "state", "reason", kind="kind")} /* planned */
"""


@dataclass(frozen=True, slots=True)
class NewOutput:
    id: UUID
    job_id: UUID
    prediction_id: UUID
    file: OutputFile
    expires_at: datetime | None = None


def build_add(new: Sequence[NewOutput], actor: str, *, in_reserve: bool = False) -> Row:
    """
    Return the arguments of ADD for files of locked jobs; it returns those whose path is new.

    The caller publishes their wakes: dispatch does so 30 s later, or when the queue is empty. `in_reserve`: of a late
    success (db/deferral.py).
    """
    args: Row = {name: [getattr(one, name) for one in new] for name in ("id", "job_id", "prediction_id", "expires_at")}
    files = [one.file for one in new]
    args |= {name: [getattr(file, name) for file in files] for name in ("path", "problem")}
    foreign = {True: FOREIGN_HOST, False: "DOWNLOAD_FAILED"}
    args["category"] = [foreign[file.is_foreign] if file.problem else None for file in files]
    kinds = [("url" if file.data is None else "inline") if file.object_key is None else "object" for file in files]
    source = [file.object_key or file.url for file in files]
    args |= {"in_reserve": in_reserve, "wait": RESERVE_WAIT if in_reserve else timedelta()}
    return {**args, "source_kind": kinds, "source": source, "source_data": [f.data for f in files], "actor": actor}


@statement("""
UPDATE outputs SET source = %(url)s, expires_at = %(expires_at)s
 WHERE prediction_id = %(prediction_id)s AND path = %(path)s AND state = 'waiting' AND source_kind = 'url'
   AND source IS DISTINCT FROM %(url)s RETURNING id
""")
def update_source_url(
    conn: Connection, prediction_id: UUID, path: str, url: str | None, expires_at: datetime | None
) -> bool:
    """Set a new URL and expiry for a waiting path; return False if nothing changed."""


@statement("""
UPDATE outputs SET source = coalesce(%(url)s, source), expires_at = coalesce(%(expires_at)s, expires_at),
       refreshed_at = moment()
 WHERE id = %(id)s AND lease_token = %(token)s RETURNING id
""")
def record_refresh(conn: Connection, lease: Lease, url: str | None, expires_at: datetime | None) -> None:
    """Record that a new URL was requested from the provider, and the URL if there is one. Raises LeaseLost."""


COLUMNS = [f.name for f in fields(Output) if f.name not in ("provider", "external_id", "model", "is_awaited")]


@statement(f"""
SELECT {", ".join(f"o.{column}" for column in COLUMNS)}, p.provider, p.external_id, p.model
  FROM outputs o JOIN predictions p ON p.id = o.prediction_id WHERE o.id = %(output_id)s
""")
def get(conn: Connection, output_id: UUID) -> Output | None:
    """Return an output joined with its prediction, inline data included."""


# At most to the last attempt before the source expires, as in moorage/retry_policy.py.
@statement("""
WITH due AS MATERIALIZED (
    SELECT id FROM outputs WHERE job_id = %(job_id)s AND state = 'waiting' AND lease_token IS NULL
       AND run_at <= moment() ORDER BY id FOR UPDATE SKIP LOCKED)
UPDATE outputs o SET woken_at = NULL,
       run_at = least(moment() + make_interval(secs => %(seconds)s),
                      CASE WHEN expires_at > moment() + interval '10 s' THEN expires_at - interval '10 s' END)
  FROM due WHERE o.id = due.id
""")
def postpone_waiting(conn: Connection, job_id: UUID, seconds: float) -> None:
    """Postpone the due, unleased outputs of a job that another transaction has locked."""


# Since the output was added or replayed; failures of moorage's own servers are no attempts at the source. A URL without
# an expiry is taken to expire %(life)s seconds after its first failure. Of a file in quarantine the next attempt reads
# those bytes.
READ_FAILURES = """
WITH failed AS MATERIALIZED (
    SELECT id, at, kind FROM events
     WHERE subject = 'output' AND subject_id = %(id)s AND kind = ANY (%(kinds)s || '{attempt_failed}'::text[])
       AND id > (SELECT max(id) FROM events
                  WHERE subject = 'output' AND subject_id = %(id)s AND from_state IS DISTINCT FROM to_state)
), source AS (
    SELECT o.deferred_at IS NOT NULL AS is_deferred,
           CASE WHEN source_kind = 'url' AND NOT is_placeholder THEN 'file' ELSE 'other' END AS work,
           (SELECT min(at) FROM failed) AS failing_since,
           coalesce(o.expires_at, (SELECT min(at) FROM failed) + make_interval(secs => %(life)s)) AS expires_at,
           o.quarantined_at + make_interval(secs => %(quarantine)s) AS kept_until
      FROM outputs o WHERE o.id = %(id)s
)
SELECT coalesce(kept_until, expires_at) AS expires_at, is_deferred, work, failing_since,
       (SELECT count(*) FROM failed WHERE kind = ANY (%(kinds)s)) AS source_errors,
       ARRAY(SELECT at FROM failed WHERE kind = ANY (%(kinds)s) AND at >= expires_at ORDER BY id) AS expired_attempts
  FROM source
"""


def read_retry_context(
    conn: Connection, lease: Lease, *, life_seconds: float, quarantine_seconds: float
) -> RetryContext:
    """Return what decides about another attempt at a leased output."""
    args = {"id": lease.row_id, "kinds": list(SOURCE_KINDS), "life": life_seconds, "quarantine": quarantine_seconds}
    row = fetch_one(conn, READ_FAILURES, args)
    return RetryContext(lease.errors, **row or {})


_FACTS = """media format content_type bytes sha256 width_px height_px frames duration_s notes key thumb_key thumb_bytes
thumb_sha256 thumb_width_px thumb_height_px color thumb_missing"""
_SET_FACTS = ", ".join(f"{column} = %({column})s" for column in _FACTS.split())
_KEPT = f"category = NULL, reason = NULL, source_data = NULL, {quarantine.RELEASE}, {_SET_FACTS}"
_IS_AWAITED = """
       AND EXISTS (SELECT FROM jobs j WHERE j.id = outputs.job_id AND j.state = 'keeping'
                                        AND (outputs.is_placeholder OR outputs.prediction_id = j.chosen_id))"""
END_KEPT = leases.build_end_statement("outputs", "waiting", "kept", _KEPT)
END_AWAITED = leases.build_end_statement("outputs", "waiting", "kept", _KEPT, _IS_AWAITED) + "/* planned */\n"


def end_kept(conn: Connection, lease: Lease, stored: StoredOutput) -> None:
    leases.execute(conn, lease, END_KEPT, **_list_facts(stored))


def queue_end_kept(conn: Connection, lease: Lease, stored: StoredOutput) -> QueuedQuery:
    """Record the stored file of an output as `end_kept`, if its locked job waits for it; else there is no row."""
    return conn.queue(END_AWAITED, leases.build_args(lease, **_list_facts(stored)))


def _list_facts(stored: StoredOutput) -> Row:
    thumb = stored.thumb
    facts = {name: getattr(stored, name) for name in ("bytes", "sha256", "key", "thumb_key", "thumb_missing")}
    facts |= {f"thumb_{name}": getattr(thumb, name, None) for name in ("sha256", "width_px", "height_px")}
    return {**asdict(stored.media), **facts, "color": thumb and thumb.color, "thumb_bytes": thumb and len(thumb.data)}


def build_category(category: str) -> str:
    """Return SQL that sets a category, but on a file of a foreign host: it makes no job partial after a replay."""
    return f"category = CASE category WHEN '{FOREIGN_HOST}' THEN category ELSE {category} END"


_DEAD = f"{build_category('%(category)s')}, reason = %(reason)s"


@statement(leases.build_end_statement("outputs", "waiting", "dead", f"{_DEAD}, source_expired = %(source_expired)s"))
def end_dead(conn: Connection, lease: Lease, category: str, reason: str, *, source_expired: bool = False) -> None:
    """End an output as `dead`, without a dead letter. Raises LeaseLost."""


def dead_letter(
    conn: Connection, lease: Lease, decision: DeadLetterDecision, *, step: Step, facts: Mapping[str, object]
) -> Job | None:
    """
    End a leased output with a dead letter; return its job, locked. Raises LeaseLost.

    A discarding output becomes `discarded`: its objects then belong to no row, and the orphan sweep deletes them.
    """
    output = get(conn, lease.row_id)
    if output is None:
        return None
    job = jobs.lock(conn, output.job_id)
    facts = {"path": output.path, "attempts": lease.attempt, **quarantine.get_facts(output), **facts}
    if step == "discard":
        discarding.end_discarded(conn, lease)
        facts["keys"] = [output.key, output.thumb_key]
    else:
        reason = to_storable(decision.reason)
        end_dead(conn, lease, decision.category, reason, source_expired=decision.source_expired)
    dead_letters.add(conn, "output", output.id, decision, step=step, facts=facts, actor=lease.leased_by)
    return job


@records("output", "'dead'", "'waiting'", "'replayed'")
@statement("""
UPDATE outputs o SET state = 'waiting', run_at = moment(), woken_at = CASE WHEN id = %(output_id)s THEN moment() END,
       ended_at = NULL, attempt = 0, crashes = 0, reason = NULL, refreshed_at = NULL, source_expired = false,
       deferred_at = NULL, category = CASE category WHEN 'FOREIGN_HOST' THEN category END
 WHERE state = 'dead' AND (num_nonnulls(source, source_data, quarantine_key) > 0 OR is_placeholder)
   AND (id = %(output_id)s OR prediction_id = %(with_others_of)s AND category <> 'FOREIGN_HOST' AND EXISTS (
        SELECT FROM dead_letters d WHERE (d.subject, d.subject_id, d.state) = ('output', o.id, 'open')))
RETURNING id, job_id
""")
def replay(conn: Connection, output_id: UUID, actor: str, with_others_of: UUID | None) -> list[UUID]:
    """Reset a dead output to `waiting`, and those of a prediction with dead letters; return those with a source."""


DETAILS = """
SELECT id, job_id, prediction_id, idx, path, source_kind,
       CASE WHEN source_kind = 'url' THEN split_part(source, '?', 1) END AS url,
       expires_at, refreshed_at, state, category, reason, created_at, run_at, attempt, crashes, leased_by, leased_until,
       ended_at, media, format, bytes, sha256, width_px, height_px, frames, duration_s, key, thumb_key, thumb_missing,
       notes
  FROM outputs
"""


@statement(f"{DETAILS} WHERE job_id = %(job_id)s ORDER BY idx")
def list_by_job(conn: Connection, job_id: UUID) -> list[Row]:
    """Return a job's outputs by idx; URLs of sources only, no inline data."""
