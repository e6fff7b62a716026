"""
The rules of docs/design.md 5 as statements: each returns the rows that break one.

A name begins with the number of its rule. Columns: subject, id (text), what.
"""

from collections.abc import Mapping
from typing import Any, Final

from db.connect import Connection, Row
from db.leases import SUBJECT
from moorage.lifecycle import EDGES

BEGIN: Final = "SET LOCAL statement_timeout = '15min'; SET LOCAL idle_in_transaction_session_timeout = '1min'"

_LIVE: Final = {
    "deliveries": "('new', 'unmatched')",
    "jobs": "('open', 'keeping')",
    "predictions": "('planned', 'submitting', 'running', 'abandoned')",
    "outputs": "('waiting', 'discarding')",
}
_SUBJECTS: Final = {"deliveries": "delivery", "jobs": "job", "predictions": "prediction", "outputs": "output"}
# The row that an event's subject names, and the state it has: a render's is told by deleted_at.
_STATES: Final = """
SELECT 'delivery' AS subject, id, state FROM deliveries
UNION ALL SELECT 'job', id, state FROM jobs
UNION ALL SELECT 'prediction', id, state FROM predictions
UNION ALL SELECT 'output', id, state FROM outputs
UNION ALL SELECT 'dead_letter', id, state FROM dead_letters
UNION ALL SELECT 'render', id, CASE WHEN deleted_at IS NULL THEN 'published' ELSE 'deleted' END FROM renders
"""

_ON_DELIVERIES: Final = {
    "1 body": """
SELECT 'delivery' AS subject, id::text AS id, 'its body is gone before it was applied' AS what
  FROM deliveries WHERE body IS NULL AND state IN ('new', 'unmatched')
""",
    "1 digest": """
SELECT 'delivery' AS subject, id::text AS id, 'its id is the digest of other bytes' AS what
  FROM deliveries WHERE webhook_id LIKE 'sha256:%%' AND webhook_id <> 'sha256:' || body_sha256
""",
    "1 applied": """
SELECT 'delivery' AS subject, d.id::text AS id, 'it is applied, but to no prediction of that id' AS what
  FROM deliveries d LEFT JOIN predictions p ON p.id = d.prediction_id
 WHERE d.state = 'applied' AND (p.provider, p.external_id) IS DISTINCT FROM (d.provider, d.external_id)
""",
    "2 unmatched": """
SELECT 'delivery' AS subject, id::text AS id, 'it is unmatched long after its time ended' AS what
  FROM deliveries WHERE state = 'unmatched' AND unmatched_until < moment() - interval '1 h'
""",
}

_ON_TIME: Final = {
    f"2 {table} time": f"""
SELECT '{_SUBJECTS[table]}' AS subject, id::text AS id, 'it is ' || state || ' without a time at which a sweep finds it'
       AS what
  FROM {table} WHERE state IN {live} AND run_at IS NULL
"""
    for table, live in _LIVE.items()
} | {
    f"2 {table} far": f"""
SELECT '{_SUBJECTS[table]}' AS subject, id::text AS id, 'it is ' || state || ' and not looked at before ' || run_at
       AS what
  FROM {table} WHERE state IN {live} AND run_at > moment() + interval '31 d'
"""
    for table, live in _LIVE.items()
}

_ON_RENDERS: Final = {
    "3 unpublished": """
SELECT 'job' AS subject, j.id::text AS id, 'it is ' || j.state || ', but there is no render' AS what
  FROM jobs j WHERE j.state IN ('succeeded', 'partial') AND NOT EXISTS (SELECT FROM renders r WHERE r.id = j.id)
""",
    "3 unearned": """
SELECT 'render' AS subject, r.id::text AS id, 'it is published, but its job is ' || j.state AS what
  FROM renders r JOIN jobs j ON j.id = r.id
 WHERE r.deleted_at IS NULL AND j.state NOT IN ('succeeded', 'partial') AND j.reopened = 0
""",
    "3 empty": """
SELECT 'render' AS subject, r.id::text AS id, 'it has no variant' AS what
  FROM renders r WHERE NOT EXISTS (SELECT FROM render_variants v WHERE v.render_id = r.id)
""",
    "3 cover": """
SELECT 'render' AS subject, r.id::text AS id, 'its cover is no variant of it' AS what
  FROM renders r
 WHERE NOT EXISTS (SELECT FROM render_variants v WHERE v.render_id = r.id AND v.idx = r.cover_idx)
   AND EXISTS (SELECT FROM render_variants v WHERE v.render_id = r.id)
""",
    "3 owner": """
SELECT 'render' AS subject, r.id::text AS id, 'its owner is not its job''s' AS what
  FROM renders r JOIN jobs j ON j.id = r.id WHERE r.owner <> j.owner
""",
    "3 variant": """
SELECT 'output' AS subject, o.id::text AS id, 'it is a variant, but ' || CASE WHEN o.state <> 'kept'
       THEN 'is ' || o.state ELSE 'of another render or place' END AS what
  FROM render_variants v JOIN renders r ON r.id = v.render_id JOIN outputs o ON o.id = v.output_id
 WHERE (o.state <> 'kept' AND r.deleted_at IS NULL) OR o.job_id <> v.render_id OR o.idx <> v.idx
""",
    "3 missing": """
SELECT 'output' AS subject, o.id::text AS id, 'it is kept, its job is ' || j.state || ', but it is no variant'
       AS what
  FROM outputs o JOIN jobs j ON j.id = o.job_id
 WHERE o.state = 'kept' AND j.state IN ('succeeded', 'partial', 'failed')
   AND NOT EXISTS (SELECT FROM render_variants v WHERE v.output_id = o.id)
""",
    "3 incomplete": """
SELECT 'job' AS subject, j.id::text AS id, 'it has succeeded without ' || count(*) || ' of its files' AS what
  FROM jobs j JOIN outputs o ON o.job_id = j.id
 WHERE j.state = 'succeeded' AND o.state <> 'kept'
   AND NOT EXISTS (SELECT FROM renders r WHERE r.id = j.id AND r.deleted_at IS NOT NULL)
 GROUP BY j.id
""",
    "3 unsettled": """
SELECT 'job' AS subject, j.id::text AS id, 'none of its files waits and nobody settled it' AS what
  FROM jobs j
 WHERE j.state = 'keeping' AND NOT EXISTS (SELECT FROM outputs o WHERE o.job_id = j.id AND o.state = 'waiting')
""",
    "4 thumbnail": """
SELECT 'output' AS subject, id::text AS id, 'it is kept without a thumbnail' AS what
  FROM outputs WHERE state = 'kept' AND thumb_key IS NULL AND (media <> 'video' OR thumb_missing IS NULL)
""",
}

_ON_KEYS: Final = {
    "4 key": """
SELECT 'output' AS subject, id::text AS id, 'its key ' || key || ' is not of its job' AS what
  FROM outputs WHERE NOT starts_with(key, 'renders/' || job_id || '/')
    OR NOT starts_with(thumb_key, 'renders/' || job_id || '/')
""",
}

_ON_LEASES: Final = {
    f"6 {table} lease": f"""
SELECT '{subject}' AS subject, id::text AS id, CASE
       WHEN state NOT IN {_LIVE[table]} THEN 'it is ' || state || ' and leased'
       WHEN leased_by IS NULL OR leased_until IS NULL THEN 'its lease has no owner or no end'
       ELSE 'its lease ends only at ' || leased_until END AS what
  FROM {table}
 WHERE lease_token IS NOT NULL
   AND (state NOT IN {_LIVE[table]} OR leased_by IS NULL OR leased_until IS NULL
        OR leased_until > moment() + make_interval(secs => 3 * %(lease_seconds)s + 60))
"""
    for table, subject in SUBJECT.items()
} | {
    "6 token": """
SELECT 'output' AS subject, min(id::text) AS id, count(*) || ' leased rows have one token' AS what
  FROM (SELECT id, lease_token FROM deliveries WHERE lease_token IS NOT NULL
        UNION ALL SELECT id, lease_token FROM predictions WHERE lease_token IS NOT NULL
        UNION ALL SELECT id, lease_token FROM outputs WHERE lease_token IS NOT NULL) held
 GROUP BY lease_token HAVING count(*) > 1
""",
}

_ON_HISTORY: Final = {
    "7 edge": """
SELECT e.subject, min(e.subject_id::text) AS id,
       count(*) || ' events tell of ' || coalesce(e.from_state, 'nothing') || ' to ' ||
       e.to_state || ', which may not be' AS what
  FROM events e
 WHERE NOT EXISTS (SELECT FROM unnest(%(subjects)s::text[], %(froms)s::text[], %(tos)s::text[]) AS a (s, f, t)
                    WHERE (a.s, a.t) = (e.subject, e.to_state) AND a.f IS NOT DISTINCT FROM e.from_state)
 GROUP BY e.subject, e.from_state, e.to_state
""",
    "7 chain": """
SELECT subject, subject_id::text AS id,
       'event ' || id || ' goes from ' || coalesce(from_state, 'nothing') || ', but it was ' ||
       coalesce(before, 'nothing') AS what
  FROM (SELECT id, subject, subject_id, from_state, to_state,
               lag(to_state) OVER (PARTITION BY subject, subject_id ORDER BY id) AS before
          FROM events) chain
 WHERE from_state IS DISTINCT FROM before
""",
    "7 state": f"""
SELECT s.subject, s.id::text AS id,
       'it is ' || s.state || ', but its last event says ' || coalesce(e.to_state, 'nothing') AS what
  FROM ({_STATES}) s
  LEFT JOIN (SELECT DISTINCT ON (subject, subject_id) subject, subject_id, to_state
               FROM events ORDER BY subject, subject_id, id DESC) e ON (e.subject, e.subject_id) = (s.subject, s.id)
 WHERE e.to_state IS DISTINCT FROM s.state
""",
    "7 gone": f"""
SELECT e.subject, e.subject_id::text AS id, 'events tell of it, but the row is gone' AS what
  FROM (SELECT DISTINCT subject, subject_id FROM events) e
  LEFT JOIN ({_STATES}) s ON (s.subject, s.id) = (e.subject, e.subject_id)
 WHERE s.id IS NULL
""",
    "7 waiting": """
SELECT 'output' AS subject, o.id::text AS id, 'it waits, though its job is ' || j.state AS what
  FROM outputs o JOIN jobs j ON j.id = o.job_id WHERE o.state = 'waiting' AND j.settled_at IS NOT NULL
""",
}

_ON_DEAD_LETTERS: Final = {
    "8 silent": """
SELECT subject, id::text AS id, 'it is ' || state || ' without a dead letter' AS what
  FROM (SELECT 'delivery' AS subject, id, state FROM deliveries WHERE state = 'dead'
        UNION ALL SELECT 'prediction', id, state FROM predictions WHERE state = 'lost'
        UNION ALL SELECT 'output', id, state FROM outputs WHERE state = 'dead') dead
 WHERE NOT EXISTS (SELECT FROM dead_letters d
                    WHERE (d.subject, d.subject_id) = (dead.subject, dead.id) AND d.state <> 'replayed')
""",
    "8 alive": """
SELECT 'dead_letter' AS subject, d.id::text AS id, 'it is open, but its ' || d.subject || ' is ' || r.state AS what
  FROM dead_letters d
  JOIN (SELECT 'delivery' AS subject, id, state FROM deliveries
        UNION ALL SELECT 'prediction', id, state FROM predictions
        UNION ALL SELECT 'output', id, state FROM outputs) r ON (r.subject, r.id) = (d.subject, d.subject_id)
 WHERE d.state = 'open' AND r.state NOT IN ('dead', 'lost', 'discarded')
""",
    "8 doubled": """
SELECT subject, subject_id::text AS id, count(*) || ' open dead letters are about it' AS what
  FROM dead_letters WHERE state = 'open' GROUP BY subject, subject_id HAVING count(*) > 1
""",
}

_ON_PLACEMENTS: Final = {
    "9 unplaced": """
SELECT 'output' AS subject, v.output_id::text AS id, 'it is published for project ' || j.project_id ||
       ', but has no placement there' AS what
  FROM render_variants v JOIN jobs j ON j.id = v.render_id
 WHERE j.project_id IS NOT NULL
   AND NOT EXISTS (SELECT FROM placements p
                    WHERE (p.render_id, p.idx, p.project_id) = (v.render_id, v.idx, j.project_id))
""",
    "9 doubled": """
SELECT 'render' AS subject, render_id::text AS id, 'file ' || idx || ' has ' || count(*) || ' placements' AS what
  FROM placements GROUP BY render_id, idx HAVING count(*) > 1
""",
    "9 unowned": """
SELECT 'render' AS subject, p.render_id::text AS id, 'file ' || p.idx || ' is placed, but is not published' AS what
  FROM placements p
 WHERE NOT EXISTS (SELECT FROM render_variants v WHERE (v.render_id, v.idx) = (p.render_id, p.idx))
""",
}

CHECKS: Final[Mapping[str, str]] = {
    **_ON_DELIVERIES, **_ON_TIME, **_ON_RENDERS, **_ON_KEYS, **_ON_LEASES, **_ON_HISTORY, **_ON_DEAD_LETTERS,
    **_ON_PLACEMENTS,
}  # fmt: skip


def broken(conn: Connection, name: str, *, lease_seconds: float, limit: int) -> list[Row]:
    """Return the rows, at most `limit`, that break a rule: subject, id, what."""
    conn.execute(BEGIN)
    args: dict[str, Any] = {"lease_seconds": lease_seconds, **_edges()}
    wanted = {key: value for key, value in args.items() if f"%({key})s" in CHECKS[name]}
    return conn.execute(f"{CHECKS[name]} LIMIT {limit:d}", wanted).fetchall()


def _edges() -> dict[str, list[str | None]]:
    edges = [(subject, *edge) for subject, taken in EDGES.items() for edge in sorted(taken, key=str)]
    return {"subjects": [e[0] for e in edges], "froms": [e[1] for e in edges], "tos": [e[2] for e in edges]}
