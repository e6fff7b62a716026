"""Checks of rules 2 and 6: every live row is due at some time, and every lease is complete and ends."""

from collections.abc import Mapping
from typing import Final

from db.audit.check import Check
from db.leases import SUBJECT, UNPAUSED
from db.submission_turns import NEEDS_NO_PLACE

_LIVE: Final = {
    "deliveries": "('new', 'unmatched')",
    "jobs": "('open', 'keeping')",
    "predictions": "('planned', 'submitting', 'running', 'abandoned')",
    "outputs": "('waiting', 'discarding')",
    "notifications": "('waiting')",
}
_SUBJECTS: Final[Mapping[str, str]] = {"jobs": "job", **{str(table): subject for table, subject in SUBJECT.items()}}
_THESE: Final = "id = ANY(%(ids)s::uuid[])"
_LATE: Final = "run_at < moment() - make_interval(secs => %(overdue_seconds)s)"

_TIMES: Final = {
    Check(2, table, "time"): f"""
SELECT '{_SUBJECTS[table]}' AS subject, id::text AS id, state || ' without run_at' AS what
  FROM {table} WHERE {_THESE} AND state IN {live} AND run_at IS NULL"""
    for table, live in _LIVE.items()
} | {
    Check(2, table, "far"): f"""
SELECT '{_SUBJECTS[table]}' AS subject, id::text AS id, state || ' and not due before ' || run_at AS what
  FROM {table} WHERE {_THESE} AND state IN {live} AND run_at > moment() + interval '31 d'"""
    for table, live in _LIVE.items()
}

# Paused rows wait for an operator, planned ones perhaps for a place; leased rows have a check of their own.
_CLAIMABLE: Final = {"jobs": "true"} | {table: f"lease_token IS NULL AND {UNPAUSED[table]}" for table in SUBJECT}
_CLAIMABLE["predictions"] += f" AND (state <> 'planned' OR {NEEDS_NO_PLACE})"

_OVERDUE: Final = (
    {
        Check(2, table, "overdue"): f"""
SELECT '{_SUBJECTS[table]}' AS subject, id::text AS id, state || ' and overdue since ' || run_at AS what
  FROM {table} WHERE {_THESE} AND state IN {live} AND {_LATE} AND {_CLAIMABLE[table]}
"""
        for table, live in _LIVE.items()
    }
    | {
        Check(2, table, "held"): f"""
SELECT '{subject}' AS subject, id::text AS id, 'lease expired at ' || leased_until || ' and was not released' AS what
  FROM {table} WHERE {_THESE} AND lease_token IS NOT NULL
   AND leased_until < moment() - make_interval(secs => 10 * %(lease_seconds)s)
"""
        for table, subject in SUBJECT.items()
    }
    | {
        Check(2, "deliveries", "unmatched"): f"""
SELECT 'delivery' AS subject, id::text AS id, 'unmatched although unmatched_until has passed' AS what
  FROM deliveries WHERE {_THESE} AND state = 'unmatched' AND unmatched_until < moment() - interval '1 h'""",
        Check(2, "outputs", "orphaned"): """
SELECT 'output' AS subject, o.id::text AS id, 'waiting, but its job is ' || coalesce(j.state, 'missing') AS what
  FROM outputs o LEFT JOIN jobs j ON j.id = o.job_id
 WHERE o.id = ANY(%(ids)s::uuid[]) AND o.state = 'waiting'
   AND ((o.deferred_at IS NULL OR o.category IS NULL) AND j.state IS DISTINCT FROM 'keeping'
        OR j.state IN ('succeeded', 'cancelled'))""",
    }
)

_HELD: Final = " UNION ALL ".join(
    f"SELECT id, lease_token FROM {table} WHERE lease_token IS NOT NULL" for table in SUBJECT
)

_LEASES: Final = (
    {
        Check(6, table, "lease"): f"""
SELECT '{subject}' AS subject, id::text AS id, CASE
       WHEN state NOT IN {_LIVE[table]} THEN state || ' and leased'
       WHEN leased_by IS NULL OR leased_until IS NULL THEN 'lease without leased_by or leased_until'
       ELSE 'lease ends as late as ' || leased_until END AS what
  FROM {table} WHERE {_THESE} AND lease_token IS NOT NULL
   AND (state NOT IN {_LIVE[table]} OR leased_by IS NULL OR leased_until IS NULL
        OR leased_until > moment() + make_interval(secs => 3 * %(lease_seconds)s + 60))
"""
        for table, subject in SUBJECT.items()
    }
    | {
        Check(6, table, "token"): f"""
SELECT '{subject}' AS subject, t.id::text AS id, 'another row has the same lease token' AS what
  FROM {table} t WHERE t.id = ANY(%(ids)s::uuid[]) AND t.lease_token IS NOT NULL
   AND EXISTS (SELECT FROM ({_HELD}) held WHERE held.lease_token = t.lease_token AND held.id <> t.id)
"""
        for table, subject in SUBJECT.items()
    }
    | {
        Check(6, table, "counts"): f"""
SELECT '{subject}' AS subject, id::text AS id, 'crashes = ' || crashes || ', attempt = ' || attempt AS what
  FROM {table} WHERE {_THESE} AND (crashes < 0 OR attempt < 0)
"""
        for table, subject in SUBJECT.items()
    }
)

WORK: Final[Mapping[Check, str]] = {**_TIMES, **_OVERDUE, **_LEASES}
