"""Queries of the page "My Renders": an owner's jobs with their results."""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from db.connection import Connection, Row
from db.statements import statement

# `f`: outputs of the chosen prediction; `expired` counts those that became dead when their URL had expired. `shown`:
# the displayed status, computed here because the filter uses it. The view `variants` has a placeholder only if its
# render has no other file. `l`: the chosen prediction, else the latest.
_CARDS = """
SELECT j.id, j.kind, j.state, j.category, j.reason, j.prompt, j.style, j.room_type, j.mode, j.project_id, j.scene,
       j.created_at, j.settled_at, j.deadline_at, r.id AS render_id, r.published_at, r.title, r.favourite,
       f.files, f.kept, f.why, s.shown, l.provider, l.model, l.state AS prediction,
       (SELECT count(*) FROM predictions p WHERE p.job_id = j.id AND p.provider <> 'placeholder') AS tries,
       j.state = 'failed' AND j.fallback_chain IS NOT NULL OR j.state IN ('failed', 'partial')
           AND EXISTS (SELECT FROM dead_letters d WHERE d.job_id = j.id AND d.state = 'open' AND d.retryable)
       AS can_retry
  FROM jobs j
  LEFT JOIN renders r ON r.id = j.id
  LEFT JOIN LATERAL (
        SELECT p.provider, p.model, p.state FROM predictions p
         WHERE p.job_id = j.id ORDER BY p.id IS NOT DISTINCT FROM j.chosen_id DESC, p.seq DESC LIMIT 1) l ON true
 CROSS JOIN LATERAL (
        SELECT count(*) AS files, count(*) FILTER (WHERE o.state = 'kept') AS kept,
               count(*) FILTER (WHERE o.state = 'dead' AND o.ended_at >= o.expires_at - interval '10 s') AS expired,
               (array_agg(ARRAY[o.category, o.reason] ORDER BY o.reason DESC NULLS LAST)
                FILTER (WHERE o.state = 'dead'))[1:1] AS why  -- of one of them
          FROM outputs o WHERE o.job_id = j.id AND o.prediction_id = j.chosen_id) f
 CROSS JOIN LATERAL (
        SELECT CASE WHEN j.state = 'open' THEN 'waiting'
                    WHEN j.state IN ('keeping', 'cancelled') THEN j.state
                    WHEN (SELECT bool_or(v.is_placeholder) FROM variants v WHERE v.render_id = j.id)
                    THEN 'placeholder'
                    WHEN j.state = 'failed' AND f.files > 0 AND f.expired = f.files THEN 'expired'
                    WHEN j.state = 'succeeded' THEN 'kept'
                    ELSE j.state END AS shown) s
 WHERE j.owner = ANY(ARRAY[%(owner)s::text]) AND r.deleted_at IS NULL
"""

_FILTERED = f"""{_CARDS}
   AND (%(kind)s::text IS NULL OR j.kind = %(kind)s)
   AND (%(states)s::text[] IS NULL OR j.state = ANY(%(states)s::text[]))
   AND (%(shown)s::text IS NULL OR s.shown = %(shown)s)
   AND (%(style)s::text IS NULL OR j.style = %(style)s)
   AND (%(project_id)s::text IS NULL OR j.project_id = %(project_id)s)
"""
NO_FILTER: Final[Mapping[str, Any]] = dict.fromkeys(("kind", "states", "shown", "style", "project_id"))


@statement(f"""{_FILTERED}
   AND (%(before)s::uuid IS NULL OR j.id < %(before)s)
 ORDER BY j.owner DESC, j.id DESC LIMIT %(limit)s
""")
def list_cards(conn: Connection, owner: str, filters: Mapping[str, Any], before: UUID | None, limit: int) -> list[Row]:
    """Return an owner's jobs matching `filters` (keys of NO_FILTER), newest first, older than the job `before`."""


MAX_COUNT: Final = 500  # an owner may have millions


@statement(f"SELECT count(*) FROM ({_FILTERED} LIMIT {MAX_COUNT + 1}) c")
def count_cards(conn: Connection, owner: str, filters: Mapping[str, Any]) -> int:
    """Return the number of an owner's jobs matching `filters`; MAX_COUNT + 1 stands for more than MAX_COUNT."""


@statement(f"{_FILTERED} AND j.id = %(job_id)s")
def get_card(conn: Connection, owner: str, job_id: UUID, filters: Mapping[str, Any] = NO_FILTER) -> Row | None:
    """Return one job as `list_cards` does; None if it is another owner's, does not match, or its render was deleted."""


@statement("""
WITH recent AS MATERIALIZED (
    SELECT style, project_id FROM jobs WHERE owner = ANY(ARRAY[%(owner)s::text]) ORDER BY owner DESC, id DESC LIMIT 500
)
SELECT array(SELECT DISTINCT style FROM recent WHERE style IS NOT NULL ORDER BY style LIMIT 50) AS styles,
       array(SELECT DISTINCT project_id FROM recent WHERE project_id IS NOT NULL ORDER BY project_id LIMIT 50)
       AS projects
""")
def list_filter_choices(conn: Connection, owner: str) -> Row: ...
