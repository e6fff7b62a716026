"""
The claim of step keep: the most urgent due output, with all that the step reads before it downloads; and its wakes.

A host is avoided while its circuit breaker is open, or while half of the worker's processes download from it. Then the
most urgent outputs of each other host are compared, which the index outputs_by_host has; else one look is enough.
"""

import uuid
from typing import Final
from uuid import UUID

from db.breakers import DELAY_PROBE, HOST, OPEN_HOSTS, OPEN_PLACES, build_candidates
from db.connection import Connection, Database, QueuedQuery, fetch_all
from db.leases import SET_LEASE, UNPAUSED
from db.outputs import COLUMNS
from moorage.model import Lease, Output

_WAITING: Final = "state = 'waiting' AND lease_token IS NULL"
_DUE: Final = f"{_WAITING} AND run_at <= moment()"
_ALIVE: Final = "crashes < %(max_crashes)s"
_URGENCY: Final = "expires_at, run_at"
NO_SHARE: Final = 2**31 - 1

_CROWDED: Final = f"""
    SELECT {HOST} AS host, 2 AS place FROM outputs
     WHERE lease_token IS NOT NULL AND state = 'waiting' AND starts_with(leased_by, %(worker)s)
       AND {HOST} <> ALL (ARRAY(SELECT host FROM {OPEN_HOSTS} UNION ALL SELECT ''))
     GROUP BY 1 HAVING count(*) >= %(share)s"""
# The claims of a worker follow one another, each with its own snapshot: else all would see that none works on a host.
LOCK_WORKER = "SELECT pg_advisory_xact_lock(hashtextextended('moorage.keep ' || %(worker)s, 0))"


# While something is paused, the named output alone, which dispatch has chosen: paused ones may be the most urgent, and
# each claim would read them all. The locks on job and project end with the claim. They are not waited for, so that the
# order of locks, job before output, is kept.
CLAIM = f"""
WITH RECURSIVE avoided AS MATERIALIZED (
    SELECT * FROM ({OPEN_PLACES} UNION ALL {_CROWDED}) AS a WHERE NOT EXISTS (SELECT FROM pauses)
), {build_candidates(f"{_DUE} AND {_ALIVE}", "8")}, chosen AS MATERIALIZED (
    SELECT id FROM outputs
     WHERE id = ANY (ARRAY(SELECT id FROM candidates ORDER BY place, {_URGENCY} LIMIT 8)) AND {_DUE}
     ORDER BY (SELECT place FROM candidates c WHERE c.id = outputs.id), {_URGENCY} LIMIT 1 FOR UPDATE SKIP LOCKED
), urgent AS MATERIALIZED (
    SELECT id FROM outputs WHERE {_DUE} AND {_ALIVE} AND NOT EXISTS (SELECT FROM pauses)
                             AND NOT EXISTS (SELECT FROM avoided)
     ORDER BY {_URGENCY} LIMIT 1 FOR UPDATE SKIP LOCKED
), named AS MATERIALIZED (
    SELECT id FROM outputs WHERE id = %(id)s AND {_DUE} AND {_ALIVE} AND {UNPAUSED["outputs"]}
       AND EXISTS (SELECT FROM pauses)
       AND {HOST} <> ALL (ARRAY(SELECT host FROM {OPEN_HOSTS} WHERE probe_at > moment()))
       FOR UPDATE SKIP LOCKED
), claimed AS (
    UPDATE outputs SET {SET_LEASE}
     WHERE id = (SELECT id FROM urgent UNION ALL SELECT id FROM chosen UNION ALL SELECT id FROM named)
    RETURNING {", ".join(COLUMNS)}, moment() AS claimed_at, attempt, crashes, {HOST} AS host
), probe AS (
    {DELAY_PROBE} AND target = 'host ' || (SELECT host FROM claimed)
), job AS MATERIALIZED (
    SELECT owner, project_id, state = 'keeping' AS is_keeping, chosen_id FROM jobs
     WHERE id = (SELECT job_id FROM claimed) FOR UPDATE SKIP LOCKED
), project AS MATERIALIZED (
    SELECT id FROM projects WHERE (owner, id) = (SELECT owner, project_id FROM job) FOR NO KEY UPDATE SKIP LOCKED
)
SELECT claimed.*, p.provider, p.external_id, p.model,
       coalesce(job.is_keeping AND (is_placeholder OR prediction_id = job.chosen_id)
                AND (job.project_id IS NULL OR EXISTS (SELECT FROM project)), false) AS is_awaited,
       EXISTS (SELECT FROM outputs WHERE id = %(id)s AND {_DUE} AND NOT {_ALIVE} AND {UNPAUSED["outputs"]}) AS is_poison
  FROM (VALUES (true)) one LEFT JOIN claimed ON true LEFT JOIN predictions p ON p.id = claimed.prediction_id
  LEFT JOIN job ON true /* planned */
"""


def claim(
    database: Database,
    row_id: UUID,
    *,
    leased_by: str,
    lease_seconds: float,
    max_crashes: int,
    host_share: int | None = None,
) -> tuple[Lease | None, bool]:
    """
    Claim the most urgent due output; the named one while something is paused. Return the lease, and True if the named
    one reached the crash limit. `host_share`: outputs of one host that a worker may lease while others are due.
    """
    token, worker = uuid.uuid4(), f"{leased_by.rpartition('/')[0]}/"
    args = {"id": row_id, "token": token, "leased_by": leased_by, "lease_seconds": lease_seconds, "worker": worker}
    args |= {"max_crashes": max_crashes, "share": NO_SHARE if host_share is None else host_share}

    def send(conn: Connection) -> QueuedQuery:
        if host_share is not None:
            conn.queue(LOCK_WORKER, args)
        return conn.queue(CLAIM, args)

    (row,) = database.run(send).rows
    names = ("is_poison", "claimed_at", "attempt", "crashes")
    is_poison, claimed_at, attempt, crashes = [row.pop(name) for name in names]
    del row["host"]
    if row["id"] is None:
        return None, is_poison
    return Lease("outputs", row["id"], token, leased_by, claimed_at, attempt, crashes, Output(**row)), is_poison


# A wake takes the most urgent output, whatever it names: so each message that waits serves one of the first %(queued)s
# rows, and later rows have none, even if one was published for them.
_FIRST: Final = f"{_DUE} AND 'keep' <> ALL (ARRAY(SELECT target FROM pauses)) AND {UNPAUSED['outputs']}"
WAKE: Final = f"""
WITH RECURSIVE avoided AS MATERIALIZED ({OPEN_PLACES}
), {build_candidates(_FIRST, "%(first)s")}, urgent AS MATERIALIZED (
    (SELECT id, woken_at FROM outputs WHERE {_FIRST} AND NOT EXISTS (SELECT FROM avoided)
      ORDER BY {_URGENCY} LIMIT %(first)s)
    UNION ALL
    (SELECT id, woken_at FROM candidates ORDER BY place, {_URGENCY} LIMIT %(first)s)
), due AS MATERIALIZED (
    SELECT id FROM outputs
     WHERE id = ANY (ARRAY(SELECT id FROM (SELECT *, row_number() OVER () AS place FROM urgent) AS u
                            WHERE place > %(queued)s OR woken_at IS NULL OR woken_at < moment() - interval '30 s'))
       AND {_WAITING} ORDER BY {_URGENCY} LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
UPDATE outputs t SET woken_at = moment() FROM due WHERE t.id = due.id RETURNING t.id /* planned */
"""


def wake_outputs(conn: Connection, *, limit: int, queued: int) -> list[UUID]:
    """Mark due outputs as woken and return them: as are due beyond the `queued` wakes, or have none for 30 s."""
    return [row["id"] for row in fetch_all(conn, WAKE, {"limit": limit, "queued": queued, "first": queued + limit})]
