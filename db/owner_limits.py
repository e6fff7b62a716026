"""What an owner uses, and its limits (MOORAGE_OWNER_LIMITS), counted under a lock of the owner."""

from collections.abc import Mapping
from typing import Final

from db.connection import Connection, QueuedQuery, Row
from db.statements import statement
from db.submission_turns import IN_FLIGHT
from moorage.errors import OwnerLimitReached

RETRY_SECONDS: Final = {"open_jobs": 10.0, "stored_bytes": 3600.0}  # one ends at any time; bytes are counted each hour
REASONS: Final = {
    "open_jobs": "{0} jobs are open, of at most {1}",
    "jobs_per_hour": "{0} jobs were created or retried in the last hour, of at most {1}",
    "stored_bytes": "{0} bytes are stored, of at most {1}",
}


@statement("SELECT pg_advisory_xact_lock(hashtextextended('moorage.owner ' || %(owner)s, 0))")
def lock(conn: Connection, owner: str) -> QueuedQuery:
    """Have other transactions that count this owner's use wait for the end of this one. Before any row."""


# The first id of a time: ids begin with it. As a subquery it is an index condition.
_FIRST_ID: Final = "(SELECT rpad(lpad(to_hex((extract(epoch FROM {}) * 1000)::bigint), 12, '0'), 32, '0')::uuid)"
_RECENT_ID: Final = _FIRST_ID.format("clock_timestamp() - interval '2 h'")  # the clock that made an id may differ

# Jobs, and the predictions that a retry of one began its fallback chain again with: each may cost as much as a new job.
_STARTS: Final = f"""(
    SELECT created_at FROM jobs WHERE owner = %(owner)s AND id > {_RECENT_ID}
     UNION ALL
    SELECT p.created_at FROM jobs j JOIN predictions p ON p.job_id = j.id
     WHERE j.owner = %(owner)s AND j.reopened > 0 AND p.entry = 0 AND p.seq > 0 AND p.id > {_RECENT_ID}) starts"""


# Bytes as last counted by the sweep `usage`, and of files stored since then. An erasure may remove rank 1.
# The bounds are subqueries and the files are summed by job: joined, the planner may read all of an owner's jobs.
@statement(f"""
WITH counted AS (
    SELECT coalesce(sum(bytes), 0) AS bytes,
           coalesce((SELECT computed_at FROM storage_use WHERE rank >= 1 ORDER BY rank LIMIT 1), 'epoch') AS at
      FROM storage_use WHERE bucket IN ('public', 'private') AND owner = %(owner)s
), since AS (
    SELECT at, {_FIRST_ID.format("greatest(at - interval '1 h', 'epoch')")} AS id FROM counted
)
SELECT (SELECT count(*) FROM predictions WHERE owner = %(owner)s AND {IN_FLIGHT}) AS in_flight,
       (SELECT count(*) FROM jobs WHERE owner = %(owner)s AND state IN ('open', 'keeping')) AS open_jobs,
       (SELECT count(*) FROM {_STARTS} WHERE created_at > moment() - interval '1 h') AS jobs_per_hour,
       (SELECT bytes FROM counted)::bigint
       + (SELECT coalesce(sum(bytes), 0) FROM uploads
           WHERE owner = %(owner)s AND id > (SELECT id FROM since) AND created_at > (SELECT at FROM since)
             AND deleted_at IS NULL)::bigint
       + (SELECT coalesce(sum(kept.bytes), 0) FROM jobs j, LATERAL (
             SELECT sum(bytes + coalesce(thumb_bytes, 0)) AS bytes FROM outputs
              WHERE job_id = j.id AND state = 'kept' AND ended_at > (SELECT at FROM since)) kept
           WHERE j.owner = %(owner)s AND j.id > (SELECT id FROM since))::bigint AS stored_bytes
""")
def read(conn: Connection, owner: str) -> Row:
    """Return what an owner uses, by the names of its limits."""


@statement(f"""
SELECT extract(epoch FROM created_at + interval '1 h' - moment())::float8 FROM {_STARTS}
 ORDER BY created_at DESC OFFSET %(limit)s - 1 LIMIT 1
""")
def _read_seconds_until_fewer_jobs(conn: Connection, owner: str, limit: int) -> float | None: ...


def require(conn: Connection, owner: str, limits: Mapping[str, int], **added: int) -> None:
    """Lock an owner and compare what it would use with its limits. Raises OwnerLimitReached."""
    limits = {name: limits[name] for name in added if name in limits}
    if not limits:
        return
    lock(conn, owner)
    use = read(conn, owner)
    for name, limit in limits.items():
        if use[name] + added[name] > limit:
            seconds = RETRY_SECONDS.get(name) or max(_read_seconds_until_fewer_jobs(conn, owner, limit) or 0.0, 1.0)
            reason = REASONS[name].format(use[name], limit)
            raise OwnerLimitReached(f"a limit of this owner is reached: {reason}", retry_after=seconds)
