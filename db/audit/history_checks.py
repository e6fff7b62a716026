"""Rules 6 and 7 over `events`: each edge is one that may be taken, each chain is whole, and nobody ended a lost row."""

from collections.abc import Mapping
from typing import Final

from moorage.transitions import TRANSITIONS

# subject: (its table, how its row tells its state)
_ROWS: Final = {
    "delivery": ("deliveries", "t.state"),
    "job": ("jobs", "t.state"),
    "prediction": ("predictions", "t.state"),
    "output": ("outputs", "t.state"),
    "render": ("renders", "CASE WHEN t.deleted_at IS NULL THEN 'published' ELSE 'deleted' END"),
    "notice": ("notices", "t.state"),
    "dead_letter": ("dead_letters", "t.state"),
}
_THESE: Final = "= ANY(%(ids)s::uuid[])"


def _edges(subject: str) -> str:
    """Return the edges of a subject as rows of text; the words are this project's own."""
    return ", ".join(f"({_text(before)}, {_text(after)})" for before, after in sorted(TRANSITIONS[subject], key=str))


def _text(state: str | None) -> str:
    return "NULL::text" if state is None else f"'{state}'"


_EDGES: Final = {
    f"7 {table} edge": f"""
SELECT e.subject, e.subject_id::text AS id, 'event ' || e.id || ' tells of ' || coalesce(e.from_state, 'nothing') ||
       ' to ' || e.to_state || ', which may not be' AS what
  FROM events e
 WHERE e.subject = '{subject}' AND e.subject_id {_THESE}
   AND NOT EXISTS (SELECT FROM (VALUES {_edges(subject)}) AS a (f, t)
                    WHERE a.t = e.to_state AND a.f IS NOT DISTINCT FROM e.from_state)
"""
    for subject, (table, _) in _ROWS.items()
}

_CHAINS: Final = {
    f"7 {table} chain": f"""
SELECT subject, subject_id::text AS id, 'event ' || id || ' goes from ' || coalesce(from_state, 'nothing') ||
       ', but it was ' || coalesce(before, 'nothing') AS what
  FROM (SELECT id, subject, subject_id, from_state, lag(to_state) OVER (PARTITION BY subject_id ORDER BY id) AS before
          FROM events WHERE subject = '{subject}' AND subject_id {_THESE}) chain
 WHERE from_state IS DISTINCT FROM before
"""
    for subject, (table, _) in _ROWS.items()
}

_STATES: Final = {
    f"7 {table} state": f"""
SELECT '{subject}' AS subject, t.id::text AS id, 'it is ' || {state} || ', but its last event says ' ||
       coalesce(e.to_state, 'nothing') AS what
  FROM {table} t
  LEFT JOIN LATERAL (SELECT to_state FROM events WHERE subject = '{subject}' AND subject_id = t.id
                      ORDER BY id DESC LIMIT 1) e ON true
 WHERE t.id {_THESE} AND e.to_state IS DISTINCT FROM {state}
"""
    for subject, (table, state) in _ROWS.items()
}

# The lock on the job orders the events of its outputs and its own, so that their ids tell what was before what.
_ENDS: Final = {
    "7 jobs early": f"""
SELECT 'job' AS subject, job_id::text AS id, 'event ' || id || ' makes it ' || to_state || ' while ' || waiting ||
       ' of its files waited' AS what
  FROM (SELECT id, subject, job_id, to_state,
               sum(CASE WHEN subject <> 'output' THEN 0
                        WHEN to_state = 'waiting' AND from_state IS DISTINCT FROM 'waiting' THEN 1
                        WHEN from_state = 'waiting' AND to_state <> 'waiting' THEN -1 ELSE 0 END)
               OVER (PARTITION BY job_id ORDER BY id) AS waiting
          FROM events WHERE job_id {_THESE} AND subject IN ('job', 'output')) told
 WHERE subject = 'job' AND to_state IN ('succeeded', 'partial', 'failed') AND waiting <> 0
""",
    "7 renders apart": f"""
SELECT 'render' AS subject, e.subject_id::text AS id, 'event ' || e.id || ' publishes it, but its job then became ' ||
       coalesce(s.to_state, 'nothing') AS what
  FROM events e
  LEFT JOIN LATERAL (SELECT to_state FROM events WHERE subject = 'job' AND subject_id = e.subject_id AND id > e.id
                      ORDER BY id LIMIT 1) s ON true
 WHERE e.subject = 'render' AND e.subject_id {_THESE} AND e.to_state = 'published'
   AND coalesce(s.to_state NOT IN ('succeeded', 'partial'), true)
""",
    "7 jobs unpublished": f"""
SELECT 'job' AS subject, e.subject_id::text AS id, 'event ' || e.id || ' makes it ' || e.to_state ||
       ', and no render was published before' AS what
  FROM events e
 WHERE e.subject = 'job' AND e.subject_id {_THESE} AND e.to_state IN ('succeeded', 'partial')
   AND NOT EXISTS (SELECT FROM events p WHERE p.subject = 'render' AND p.subject_id = e.subject_id AND p.id < e.id)
""",
    # A key names the lease under which its object was stored, and a release names the lease that it took away.
    "6 outputs lost": f"""
SELECT 'output' AS subject, o.id::text AS id, 'it was ended under a lease that event ' || e.id || ' had taken away'
       AS what
  FROM outputs o JOIN events e ON e.subject = 'output' AND e.subject_id = o.id
 WHERE o.id {_THESE} AND e.from_state = e.to_state
   AND substring(e.reason FROM 'lease ([0-9a-f]{{8}})') = substring(o.key FROM '-([0-9a-f]{{8}})[.][a-z0-9]+$')
""",
    "6 outputs thief": f"""
SELECT 'output' AS subject, id::text AS id, 'its file and its thumbnail were stored under two leases' AS what
  FROM outputs
 WHERE id {_THESE} AND thumb_key <> regexp_replace(key, '[.][a-z0-9]+$', '') || '_thumb.webp'
""",
}

HISTORY: Final[Mapping[str, str]] = {**_EDGES, **_CHAINS, **_STATES, **_ENDS}

# Asked of those that events tell of, not of rows.
GONE: Final[Mapping[str, str]] = {
    f"7 {subject}_events gone": f"""
SELECT '{subject}' AS subject, gone::text AS id, 'events tell of it, but the row is gone' AS what
  FROM unnest(%(ids)s::uuid[]) gone WHERE NOT EXISTS (SELECT FROM {table} t WHERE t.id = gone)
   AND EXISTS (SELECT FROM events e WHERE e.subject = '{subject}' AND e.subject_id = gone)
"""
    for subject, (table, _) in _ROWS.items()
}
