"""Checks of rules 6 and 7 over `events`: valid transitions, complete histories, no write under a lost lease."""

from collections.abc import Mapping
from typing import Final

from db.audit.check import SUBJECTS, Check, build_checks
from moorage.transitions import TRANSITIONS

_STATES: Final = dict.fromkeys(SUBJECTS, "t.state") | {
    "renders": "CASE WHEN t.deleted_at IS NULL THEN 'published' ELSE 'deleted' END"
}
EVENTS_OF: Final = {subject: f"{subject}_events" for subject in SUBJECTS.values()}  # the scope of a subject's events
_THESE: Final = "= ANY(%(ids)s::uuid[])"


def _edges(subject: str) -> str:
    """Return the transitions of a subject as rows of VALUES; the states are constants of this project."""
    return ", ".join(
        f"({'NULL::text' if before is None else repr(before)}, {after!r})"
        for before, after in sorted(TRANSITIONS[subject], key=str)
    )


# The job lock orders the events of a job and its outputs, so that their ids are in the order of time.
_HISTORY: Final = build_checks(
    *(
        (7, table, "edge", """'event ' || e.id || ': invalid transition from ' ||
       coalesce(e.from_state, 'none') || ' to ' || e.to_state""",
         f"JOIN events e ON e.subject = '{subject}' AND e.subject_id = t.id",
         f"""NOT EXISTS (SELECT FROM (VALUES {_edges(subject)}) AS a (f, t)
                    WHERE a.t = e.to_state AND a.f IS NOT DISTINCT FROM e.from_state)""")
        for table, subject in SUBJECTS.items()
    ),
    *(
        (7, table, "chain", """'event ' || e.id || ': from_state is ' || coalesce(e.from_state, 'none') ||
       ', but the state was ' || coalesce(e.before, 'none')""",
         f"""CROSS JOIN LATERAL (SELECT id, from_state, lag(to_state) OVER (ORDER BY id) AS before
                               FROM events WHERE subject = '{subject}' AND subject_id = t.id) e""",
         "e.from_state IS DISTINCT FROM e.before")
        for table, subject in SUBJECTS.items()
    ),
    *(
        (7, table, "state", f"""'state is ' || {_STATES[table]} || ', but its last event has ' ||
       coalesce(e.to_state, 'none')""",
         f"""LEFT JOIN LATERAL (SELECT to_state FROM events WHERE subject = '{subject}' AND subject_id = t.id
                      ORDER BY id DESC LIMIT 1) e ON true""",
         f"e.to_state IS DISTINCT FROM {_STATES[table]}")
        for table, subject in SUBJECTS.items()
    ),
    (7, "renders", "apart", """'event ' || e.id || ': published, but its job then became ' ||
       coalesce(s.to_state, 'none')""",
     """JOIN events e ON e.subject = 'render' AND e.subject_id = t.id
  LEFT JOIN LATERAL (SELECT to_state FROM events WHERE subject = 'job' AND subject_id = t.id AND id > e.id
                      ORDER BY id LIMIT 1) s ON true""",
     "e.to_state = 'published' AND coalesce(s.to_state NOT IN ('succeeded', 'partial'), true)"),
    (7, "jobs", "unpublished", "'event ' || e.id || ': ' || e.to_state || ' without a render published before'",
     "JOIN events e ON e.subject = 'job' AND e.subject_id = t.id",
     """e.to_state IN ('succeeded', 'partial')
   AND NOT EXISTS (SELECT FROM events p WHERE p.subject = 'render' AND p.subject_id = t.id AND p.id < e.id)"""),
    # A key contains the lease under which its object was stored; a release records the lease it ended.
    (6, "outputs", "lost", "'ended under a lease that event ' || e.id || ' had released'",
     "JOIN events e ON e.subject = 'output' AND e.subject_id = t.id",
     "e.lease = substring(t.key FROM '-([0-9a-f]{8})[.][a-z0-9]+$')"),
    (6, "outputs", "thief", "'file and thumbnail were stored under different leases'", "",
     "t.thumb_key <> regexp_replace(t.key, '[.][a-z0-9]+$', '') || '_thumb.webp'"),
)  # fmt: skip

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

HISTORY: Final[Mapping[Check, str]] = {
    **_HISTORY,
    Check(7, "jobs", "early"): f"""
SELECT 'job' AS subject, job_id::text AS id, 'event ' || id || ': ' || to_state || ' while ' || waiting ||
       ' of its files were waiting' AS what
  FROM (SELECT id, subject, job_id, to_state, sum(awaited - before) OVER (PARTITION BY job_id ORDER BY id) AS waiting
          FROM (SELECT *, lag(awaited, 1, 0) OVER (PARTITION BY subject, subject_id ORDER BY id) AS before
                  FROM {_AWAITED}) changed) history
 WHERE subject = 'job' AND to_state IN ('succeeded', 'partial', 'failed') AND waiting <> 0""",
    # Checked over the subjects of events, not over rows.
    **{
        Check(7, EVENTS_OF[subject], "gone"): f"""
SELECT '{subject}' AS subject, gone::text AS id, 'has events, but no row' AS what
  FROM unnest(%(ids)s::uuid[]) gone WHERE NOT EXISTS (SELECT FROM {table} t WHERE t.id = gone)
   AND EXISTS (SELECT FROM events e WHERE e.subject = '{subject}' AND e.subject_id = gone)"""
        for table, subject in SUBJECTS.items()
    },
}
