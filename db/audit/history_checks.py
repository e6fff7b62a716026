"""Checks of rules 6 and 7 over `events`: valid transitions, complete histories, no write under a lost lease."""

from collections.abc import Mapping
from typing import Final

from db.audit.check import Check
from moorage.transitions import TRANSITIONS

# subject: (table, expression of its state)
_ROWS: Final = {
    "delivery": ("deliveries", "t.state"),
    "job": ("jobs", "t.state"),
    "prediction": ("predictions", "t.state"),
    "output": ("outputs", "t.state"),
    "render": ("renders", "CASE WHEN t.deleted_at IS NULL THEN 'published' ELSE 'deleted' END"),
    "notification": ("notifications", "t.state"),
    "dead_letter": ("dead_letters", "t.state"),
}
EVENTS_OF: Final = {subject: f"{subject}_events" for subject in _ROWS}  # the scope of a subject's events
_THESE: Final = "= ANY(%(ids)s::uuid[])"


def _edges(subject: str) -> str:
    """Return the transitions of a subject as rows of VALUES; the states are constants of this project."""
    return ", ".join(f"({_text(before)}, {_text(after)})" for before, after in sorted(TRANSITIONS[subject], key=str))


def _text(state: str | None) -> str:
    return "NULL::text" if state is None else f"'{state}'"


_EDGES: Final = {
    Check(7, table, "edge"): f"""
SELECT e.subject, e.subject_id::text AS id, 'event ' || e.id || ': invalid transition from ' ||
       coalesce(e.from_state, 'none') || ' to ' || e.to_state AS what
  FROM events e WHERE e.subject = '{subject}' AND e.subject_id {_THESE}
   AND NOT EXISTS (SELECT FROM (VALUES {_edges(subject)}) AS a (f, t)
                    WHERE a.t = e.to_state AND a.f IS NOT DISTINCT FROM e.from_state)"""
    for subject, (table, _) in _ROWS.items()
}

_CHAINS: Final = {
    Check(7, table, "chain"): f"""
SELECT subject, subject_id::text AS id, 'event ' || id || ': from_state is ' || coalesce(from_state, 'none') ||
       ', but the state was ' || coalesce(before, 'none') AS what
  FROM (SELECT id, subject, subject_id, from_state, lag(to_state) OVER (PARTITION BY subject_id ORDER BY id) AS before
          FROM events WHERE subject = '{subject}' AND subject_id {_THESE}) chain
 WHERE from_state IS DISTINCT FROM before"""
    for subject, (table, _) in _ROWS.items()
}

_STATES: Final = {
    Check(7, table, "state"): f"""
SELECT '{subject}' AS subject, t.id::text AS id, 'state is ' || {state} || ', but its last event has ' ||
       coalesce(e.to_state, 'none') AS what
  FROM {table} t
  LEFT JOIN LATERAL (SELECT to_state FROM events WHERE subject = '{subject}' AND subject_id = t.id
                      ORDER BY id DESC LIMIT 1) e ON true
 WHERE t.id {_THESE} AND e.to_state IS DISTINCT FROM {state}"""
    for subject, (table, state) in _ROWS.items()
}

# `awaited` is 1 after an event of an output that its job waits for: not since it was deferred.
_AWAITED: Final = f"""
(SELECT id, subject, subject_id, job_id, to_state,
        CASE WHEN subject = 'output' AND to_state = 'waiting'
              AND coalesce(max(id) FILTER (WHERE kind = 'deferred') OVER of_row, 0)
                < max(id) FILTER (WHERE kind = 'resumed' OR from_state IS DISTINCT FROM 'waiting') OVER of_row
             THEN 1 ELSE 0 END AS awaited
   FROM events WHERE job_id {_THESE} AND subject IN ('job', 'output')
 WINDOW of_row AS (PARTITION BY subject, subject_id ORDER BY id)) awaiting
"""

# The job lock orders the events of a job and its outputs, so that their ids are in the order of time.
_ENDS: Final = {
    Check(7, "jobs", "early"): f"""
SELECT 'job' AS subject, job_id::text AS id, 'event ' || id || ': ' || to_state || ' while ' || waiting ||
       ' of its files were waiting' AS what
  FROM (SELECT id, subject, job_id, to_state, sum(awaited - before) OVER (PARTITION BY job_id ORDER BY id) AS waiting
          FROM (SELECT *, lag(awaited, 1, 0) OVER (PARTITION BY subject, subject_id ORDER BY id) AS before
                  FROM {_AWAITED}) changed) history
 WHERE subject = 'job' AND to_state IN ('succeeded', 'partial', 'failed') AND waiting <> 0""",
    Check(7, "renders", "apart"): f"""
SELECT 'render' AS subject, e.subject_id::text AS id, 'event ' || e.id || ': published, but its job then became ' ||
       coalesce(s.to_state, 'none') AS what
  FROM events e
  LEFT JOIN LATERAL (SELECT to_state FROM events WHERE subject = 'job' AND subject_id = e.subject_id AND id > e.id
                      ORDER BY id LIMIT 1) s ON true
 WHERE e.subject = 'render' AND e.subject_id {_THESE} AND e.to_state = 'published'
   AND coalesce(s.to_state NOT IN ('succeeded', 'partial'), true)""",
    Check(7, "jobs", "unpublished"): f"""
SELECT 'job' AS subject, e.subject_id::text AS id, 'event ' || e.id || ': ' || e.to_state ||
       ' without a render published before' AS what
  FROM events e WHERE e.subject = 'job' AND e.subject_id {_THESE} AND e.to_state IN ('succeeded', 'partial')
   AND NOT EXISTS (SELECT FROM events p WHERE p.subject = 'render' AND p.subject_id = e.subject_id AND p.id < e.id)""",
    # A key contains the lease under which its object was stored; a release records the lease it ended.
    Check(6, "outputs", "lost"): f"""
SELECT 'output' AS subject, o.id::text AS id, 'ended under a lease that event ' || e.id || ' had released' AS what
  FROM outputs o JOIN events e ON e.subject = 'output' AND e.subject_id = o.id
 WHERE o.id {_THESE} AND e.lease = substring(o.key FROM '-([0-9a-f]{{8}})[.][a-z0-9]+$')""",
    Check(6, "outputs", "thief"): f"""
SELECT 'output' AS subject, id::text AS id, 'file and thumbnail were stored under different leases' AS what
  FROM outputs WHERE id {_THESE} AND thumb_key <> regexp_replace(key, '[.][a-z0-9]+$', '') || '_thumb.webp'""",
}

HISTORY: Final[Mapping[Check, str]] = {**_EDGES, **_CHAINS, **_STATES, **_ENDS}

# Checked over the subjects of events, not over rows.
GONE: Final[Mapping[Check, str]] = {
    Check(7, EVENTS_OF[subject], "gone"): f"""
SELECT '{subject}' AS subject, gone::text AS id, 'has events, but no row' AS what
  FROM unnest(%(ids)s::uuid[]) gone WHERE NOT EXISTS (SELECT FROM {table} t WHERE t.id = gone)
   AND EXISTS (SELECT FROM events e WHERE e.subject = '{subject}' AND e.subject_id = gone)"""
    for subject, (table, _) in _ROWS.items()
}
