"""
Circuit breakers of download hosts and providers' APIs, shared by all processes.

A row of `breakers` is an open one. Claims and dispatch skip its rows, but for the most urgent one each five seconds.
"""

from typing import Final
from uuid import UUID

from db.connection import Connection, Database, QueuedQuery, Row, fetch_all
from db.statements import statement

MIN_FAILURES: Final = 10
MIN_JOBS: Final = 3
# Of its successes a process records one in ten seconds: an older one than 40 s is certainly not within 30 s.
WINDOW: Final = "interval '30 s'"
SUCCESS_SECONDS: Final = 10.0
PROBE: Final = "interval '5 s'"

# The download host of an output, as in the index outputs_by_host; '': nothing is downloaded.
HOST: Final = "(CASE WHEN quarantine_key IS NULL THEN source_host(source) ELSE '' END)"
OPEN_HOSTS: Final = """(SELECT substr(target, 6) AS host, opened_at, probe_at FROM breakers
  WHERE starts_with(target, 'host ')) AS b"""

_WAITING: Final = "state = 'waiting' AND lease_token IS NULL"
_IS_PAST: Final = "expires_at < moment() - interval '10 min'"
# An open breaker whose rows are due has a probe each five seconds, while somebody claims them.
HAS_PROBES: Final = "probe_at > moment() - interval '1 min'"
# For the audit: the output waits for no host whose breaker somebody probes.
HOST_ALLOWS: Final = f"""(state <> 'waiting' OR {_IS_PAST} OR {HOST} <> ALL (
    ARRAY(SELECT host FROM {OPEN_HOSTS} WHERE {HAS_PROBES})))"""
PROVIDER_ALLOWS: Final = f"'api ' || provider <> ALL (ARRAY(SELECT target FROM breakers WHERE {HAS_PROBES}))"
POLL_ALLOWS: Final = f"({PROVIDER_ALLOWS} OR coalesce(output_until, deadline_at) <= moment())"
# Places in which to look: 0 the probe of an open breaker, 1 hosts without one, 2 (of a claim) a host that has its share
# of the worker. 3 waits for its breaker; but long past its expiry an output is tried as the last ones until it is given
# up: its wait must not be as long as the outage.
OPEN_PLACES: Final = f"SELECT host, CASE WHEN probe_at <= moment() THEN 0 ELSE 3 END AS place FROM {OPEN_HOSTS}"

# While the breaker of a provider's API is open, its predictions wait, except the most urgent one that is due, and those
# whose wait ends (`predictions.get_wait_end`). A claim of planned ones decides by itself (db/submission_turns.py).
API_ALLOWS: Final = """(NOT EXISTS (SELECT FROM breakers) OR predictions.state = 'planned'
    OR 'api ' || predictions.provider <> ALL (ARRAY(SELECT target FROM breakers))
    OR predictions.id = ANY (ARRAY(
       SELECT (SELECT id FROM predictions p
                WHERE 'api ' || p.provider = b.target AND p.state IN ('submitting', 'running', 'abandoned')
                  AND p.lease_token IS NULL AND p.run_at <= moment() ORDER BY p.run_at LIMIT 1)
         FROM breakers b WHERE b.probe_at <= moment()))
    OR coalesce(predictions.output_until, predictions.deadline_at) <= moment())"""
# The condition on a planned prediction `p`: also without a probe if the next entry of its fallback chain is due.
SUBMIT_ALLOWS: Final = """(
    NOT EXISTS (SELECT FROM breakers b WHERE b.target = 'api ' || p.provider AND b.probe_at > moment())
    OR p.deadline_at <= moment()
    OR EXISTS (SELECT FROM jobs j
                WHERE j.id = p.job_id AND p.entry + 1 < jsonb_array_length(j.fallback_chain)
                  AND p.created_at + make_interval(
                      secs => (j.fallback_chain -> p.entry ->> 'seconds')::double precision) <= moment()))"""
DELAY_PROBE: Final = f"UPDATE breakers SET probe_at = moment() + {PROBE} WHERE probe_at <= moment()"


# The hosts of waiting outputs, by a loose scan of the index; none while the CTE `avoided` is empty.
_HOSTS: Final = f"""hosts (host) AS (
    (SELECT {HOST} FROM outputs WHERE {_WAITING} AND EXISTS (SELECT FROM avoided) ORDER BY 1 LIMIT 1)
    UNION ALL
    SELECT (SELECT {HOST} FROM outputs WHERE {_WAITING} AND {HOST} > hosts.host ORDER BY 1 LIMIT 1)
      FROM hosts WHERE host IS NOT NULL
)"""


def build_oldest_due(condition: str) -> str:
    """Return a query for the oldest `run_at` by HOST_ALLOWS; of each host if one fails: its files may all be older."""
    # A FILTER, as the planner takes a min() of a condition from outputs_due, through all files of the other hosts.
    of_host = f"(SELECT min(run_at) FILTER (WHERE {condition}) AS run_at FROM outputs WHERE {_WAITING} AND {HOST} ="
    return f"""(
WITH RECURSIVE avoided AS MATERIALIZED (SELECT host FROM {OPEN_HOSTS} WHERE {HAS_PROBES}), {_HOSTS}
SELECT min(run_at) AS run_at FROM outputs WHERE {_WAITING} AND {condition} AND ARRAY(SELECT host FROM avoided) = '{{}}'
UNION ALL SELECT c.run_at FROM hosts h CROSS JOIN LATERAL {of_host} h.host) c
           WHERE h.host <> ALL (ARRAY(SELECT host FROM avoided))
UNION ALL SELECT c.run_at FROM avoided a CROSS JOIN LATERAL {of_host} a.host AND {_IS_PAST}) c)"""


def build_candidates(condition: str, limit: str) -> str:
    """
    Return CTEs that end with `candidates`: the most urgent outputs of each host, at most `limit`.

    They are empty if the CTE `avoided (host, place)` is: then the index outputs_urgent has the most urgent outputs.
    The probe is one of an owner whose files did not fail just now, if there is any: broken files of one delay no other.
    A file that is not requested, as its job stores another prediction's, is the probe only if no other is due.
    """
    columns, order = "SELECT id, woken_at, expires_at, run_at", "ORDER BY expires_at, run_at"
    return f"""
{_HOSTS}, candidates AS MATERIALIZED (
    SELECT c.*, coalesce(a.place, 1) AS place FROM hosts h LEFT JOIN avoided a ON a.host = h.host
      CROSS JOIN LATERAL ({columns} FROM outputs WHERE {condition} AND {HOST} = h.host {order} LIMIT {limit}) c
     WHERE a.place IS NULL OR a.place = 2
    UNION ALL
    SELECT c.*, 0 FROM avoided a
      CROSS JOIN LATERAL (
           SELECT f.id, f.woken_at, f.expires_at, f.run_at FROM (
               {columns}, job_id, prediction_id FROM outputs WHERE {condition} AND {HOST} = a.host {order} LIMIT 1000) f
             JOIN jobs j ON j.id = f.job_id
            ORDER BY j.state = 'keeping' AND f.prediction_id <> j.chosen_id, j.owner = ANY (
                  ARRAY(SELECT s.owner FROM target_attempts t JOIN jobs s ON s.id = t.job_id
                         WHERE t.target = 'host ' || a.host)), f.expires_at, f.run_at LIMIT 1) c
     WHERE a.place = 0
    UNION ALL
    SELECT c.*, 2 FROM avoided a
      CROSS JOIN LATERAL ({columns} FROM outputs WHERE {condition} AND {HOST} = a.host AND {_IS_PAST}
                          {order} LIMIT {limit}) c
     WHERE a.place = 3
)"""


_FORGET: Final = """
DELETE FROM target_attempts WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM target_attempts WHERE at < moment() - interval '1 min' LIMIT 100 FOR UPDATE SKIP LOCKED))
"""


# Waits for no lock: it is part of transactions that lock a job.
@statement(f"""
WITH closed AS (
    DELETE FROM breakers WHERE target = (SELECT target FROM breakers WHERE target = %(target)s FOR UPDATE SKIP LOCKED)
), forgotten AS ({_FORGET})
INSERT INTO target_attempts (target) VALUES (%(target)s)
""")
def queue_success(conn: Connection, target: str) -> QueuedQuery:
    """Record that a request succeeded, and close the target's breaker, in the caller's transaction."""


NOTE_FAILURE = f"""
WITH forgotten AS ({_FORGET}) INSERT INTO target_attempts (target, job_id) VALUES (%(target)s, %(job_id)s)
"""
OPEN = f"""
INSERT INTO breakers (target, probe_at, reason)
SELECT %(target)s, moment() + {PROBE}, %(reason)s
  FROM (SELECT count(job_id) FILTER (WHERE at > moment() - {WINDOW}) AS failures,
               count(DISTINCT job_id) FILTER (WHERE at > moment() - {WINDOW}) AS jobs,
               bool_or(job_id IS NULL) AS has_succeeded
          FROM target_attempts
         WHERE target = %(target)s AND at > moment() - {WINDOW} - make_interval(secs => {SUCCESS_SECONDS})) AS recent
 WHERE failures >= {MIN_FAILURES} AND jobs >= {MIN_JOBS} AND NOT has_succeeded
ON CONFLICT DO NOTHING RETURNING target
"""


def note_failure(database: Database, target: str, job_id: UUID, reason: str) -> bool:
    """Record a request that failed as in an outage; return True if that opened the target's breaker."""

    def note(conn: Connection) -> bool:
        args = {"target": target, "job_id": job_id, "reason": reason}
        conn.queue(NOTE_FAILURE, args)
        return bool(fetch_all(conn, OPEN, args))

    return database.run(note, point="breaker")


# A breaker without a probe for a minute has no rows that are due: the next one that is will close it or be its probe.
@statement(f"SELECT target, opened_at, probe_at, reason FROM breakers WHERE {HAS_PROBES} ORDER BY opened_at")
def list_open(conn: Connection) -> list[Row]:
    """Return the open breakers, oldest first."""
