"""What an owner uses, and its limits (MOORAGE_OWNER_LIMITS), counted under a lock of the owner."""

import math
import time
from collections.abc import Mapping
from typing import Final
from uuid import UUID

from db.connection import Connection, QueuedQuery, Row, fetch_one
from db.statements import statement
from db.submission_turns import IN_FLIGHT
from moorage.errors import OwnerLimitReached

# Bytes as last counted by the sweep `usage`, and of files stored since then; ids begin with the time of their row.
# The bounds are subqueries and the files are summed by job: joined, the planner may read all of an owner's jobs.
READ: Final = f"""
WITH counted AS (
    SELECT coalesce(sum(bytes), 0) AS bytes,
           coalesce((SELECT max(computed_at) FROM storage_use WHERE rank = 1), 'epoch') AS at
      FROM storage_use WHERE bucket IN ('public', 'private') AND owner = %(owner)s
), since AS (
    SELECT at, rpad(lpad(to_hex((extract(epoch FROM greatest(at - interval '1 h', 'epoch')) * 1000)::bigint), 12, '0'),
                    32, '0')::uuid AS id FROM counted
)
SELECT (SELECT count(*) FROM predictions WHERE owner = %(owner)s AND {IN_FLIGHT}) AS in_flight,
       (SELECT count(*) FROM jobs WHERE owner = %(owner)s AND state IN ('open', 'keeping')) AS open_jobs,
       (SELECT count(*) FROM jobs WHERE owner = %(owner)s AND id > %(first_id)s
           AND created_at > moment() - interval '1 h') AS jobs_per_hour,
       (SELECT bytes FROM counted)::bigint
       + (SELECT coalesce(sum(bytes), 0) FROM uploads
           WHERE owner = %(owner)s AND id > (SELECT id FROM since) AND created_at > (SELECT at FROM since)
             AND deleted_at IS NULL)::bigint
       + (SELECT coalesce(sum(kept.bytes), 0) FROM jobs j, LATERAL (
             SELECT sum(bytes + coalesce(thumb_bytes, 0)) AS bytes FROM outputs
              WHERE job_id = j.id AND state = 'kept' AND ended_at > (SELECT at FROM since)) kept
           WHERE j.owner = %(owner)s AND j.id > (SELECT id FROM since))::bigint AS stored_bytes
"""
SECONDS_UNTIL_FEWER_JOBS: Final = """
SELECT extract(epoch FROM created_at + interval '1 h' - moment()) AS seconds FROM jobs
 WHERE owner = %(owner)s AND id > %(first_id)s ORDER BY id DESC OFFSET %(limit)s - 1 LIMIT 1
"""
RETRY_SECONDS: Final = {"open_jobs": 10.0, "stored_bytes": 3600.0}  # one ends at any time; bytes are counted each hour
REASONS: Final = {
    "open_jobs": "{0} jobs are open, of at most {1}",
    "jobs_per_hour": "{0} jobs were created in the last hour, of at most {1}",
    "stored_bytes": "{0} bytes are stored, of at most {1}",
}


@statement("SELECT pg_advisory_xact_lock(hashtextextended('moorage.owner ' || %(owner)s, 0))")
def lock(conn: Connection, owner: str) -> QueuedQuery:
    """Have other transactions that count this owner's use wait for the end of this one. Before any row."""


def read(conn: Connection, owner: str) -> Row:
    """Return what an owner uses, by the names of its limits."""
    return fetch_one(conn, READ, _build_args(owner)) or {}


def require(conn: Connection, owner: str, limits: Mapping[str, int], **added: int) -> None:
    """Lock an owner and compare what it would use with its limits. Raises OwnerLimitReached."""
    limits = {name: limits[name] for name in added if name in limits}
    if not limits:
        return
    lock(conn, owner)
    use = read(conn, owner)
    for name, limit in limits.items():
        if use[name] + added[name] > limit:
            seconds = RETRY_SECONDS.get(name) or _wait_for_fewer_jobs(conn, owner, limit)
            reason = REASONS[name].format(use[name], limit)
            raise OwnerLimitReached(f"a limit of this owner is reached: {reason}", retry_after=seconds)


def _wait_for_fewer_jobs(conn: Connection, owner: str, limit: int) -> float:
    row = fetch_one(conn, SECONDS_UNTIL_FEWER_JOBS, {**_build_args(owner), "limit": limit})
    return max(float(row["seconds"]) if row else 0.0, 1.0)


def _build_args(owner: str) -> Row:
    """Return arguments with the first id of the last two hours: the clock of PostgreSQL may differ by one of them."""
    return {"owner": owner, "first_id": UUID(int=math.floor((time.time() - 7200) * 1000) << 80)}
