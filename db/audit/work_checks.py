"""Rules 2 and 6 as statements: what waits is found by a sweep in time, and a lease is whole and ends."""

from collections.abc import Mapping
from typing import Final

from db.audit.check import Check
from db.leases import SUBJECT, UNPAUSED

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
SELECT '{_SUBJECTS[table]}' AS subject, id::text AS id, 'it is ' || state || ' without a time at which a sweep finds it'
       AS what
  FROM {table} WHERE {_THESE} AND state IN {live} AND run_at IS NULL
"""
    for table, live in _LIVE.items()
} | {
    Check(2, table, "far"): f"""
SELECT '{_SUBJECTS[table]}' AS subject, id::text AS id, 'it is ' || state || ' and not looked at before ' || run_at
       AS what
  FROM {table} WHERE {_THESE} AND state IN {live} AND run_at > moment() + interval '31 d'
"""
    for table, live in _LIVE.items()
}

# A paused row waits for a person, and a leased one is the lease's matter.
_IN_TURN: Final = {"jobs": "true"} | {table: f"lease_token IS NULL AND {UNPAUSED[table]}" for table in SUBJECT}

_OVERDUE: Final = (
    {
        Check(2, table, "overdue"): f"""
SELECT '{_SUBJECTS[table]}' AS subject, id::text AS id, 'it is ' || state || ' and due since ' || run_at AS what
  FROM {table}
 WHERE {_THESE} AND state IN {live} AND {_LATE} AND {_IN_TURN[table]}
"""
        for table, live in _LIVE.items()
    }
    | {
        Check(2, table, "held"): f"""
SELECT '{subject}' AS subject, id::text AS id, 'its lease ended at ' || leased_until || ' and was never freed' AS what
  FROM {table}
 WHERE {_THESE} AND lease_token IS NOT NULL
   AND leased_until < moment() - make_interval(secs => 10 * %(lease_seconds)s)
"""
        for table, subject in SUBJECT.items()
    }
    | {
        Check(2, "deliveries", "unmatched"): f"""
SELECT 'delivery' AS subject, id::text AS id, 'it is unmatched long after its time ended' AS what
  FROM deliveries WHERE {_THESE} AND state = 'unmatched' AND unmatched_until < moment() - interval '1 h'
""",
        Check(2, "outputs", "orphaned"): """
SELECT 'output' AS subject, o.id::text AS id, 'it waits, though its job is ' || coalesce(j.state, 'gone') AS what
  FROM outputs o LEFT JOIN jobs j ON j.id = o.job_id
 WHERE o.id = ANY(%(ids)s::uuid[]) AND o.state = 'waiting' AND j.state IS DISTINCT FROM 'keeping'
""",
    }
)

_HELD: Final = " UNION ALL ".join(
    f"SELECT id, lease_token FROM {table} WHERE lease_token IS NOT NULL" for table in SUBJECT
)

_LEASES: Final = (
    {
        Check(6, table, "lease"): f"""
SELECT '{subject}' AS subject, id::text AS id, CASE
       WHEN state NOT IN {_LIVE[table]} THEN 'it is ' || state || ' and leased'
       WHEN leased_by IS NULL OR leased_until IS NULL THEN 'its lease has no owner or no end'
       ELSE 'its lease ends only at ' || leased_until END AS what
  FROM {table}
 WHERE {_THESE} AND lease_token IS NOT NULL
   AND (state NOT IN {_LIVE[table]} OR leased_by IS NULL OR leased_until IS NULL
        OR leased_until > moment() + make_interval(secs => 3 * %(lease_seconds)s + 60))
"""
        for table, subject in SUBJECT.items()
    }
    | {
        Check(6, table, "token"): f"""
SELECT '{subject}' AS subject, t.id::text AS id, 'another row is leased by the same token' AS what
  FROM {table} t
 WHERE t.id = ANY(%(ids)s::uuid[]) AND t.lease_token IS NOT NULL
   AND EXISTS (SELECT FROM ({_HELD}) held WHERE held.lease_token = t.lease_token AND held.id <> t.id)
"""
        for table, subject in SUBJECT.items()
    }
    | {
        Check(6, table, "counts"): f"""
SELECT '{subject}' AS subject, id::text AS id, 'it has crashed ' || crashes || ' times in ' || attempt || ' attempts'
       AS what
  FROM {table} WHERE {_THESE} AND (crashes < 0 OR attempt < 0)
"""
        for table, subject in SUBJECT.items()
    }
)

WORK: Final[Mapping[Check, str]] = {**_TIMES, **_OVERDUE, **_LEASES}
