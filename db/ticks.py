"""
Ticks: one row for each slot of a sweep. The process that inserts it runs the sweep, so several beats may run.

The statement that claims a slot also tells what is due. Without anything the tick has ended with it: one round trip.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from psycopg.types.json import Jsonb

from db import clock_skew, discarding, erasures, jobs, leases, progress, projects
from db.connection import Connection, Database, QueuedQuery, Row
from db.statements import statement

# Conditions by the names that the sweep knows; a sweep that is not listed is always due.
DUE: Final[Mapping[str, Mapping[str, str]]] = {
    "dispatch": {step: is_due for step, is_due in leases.IS_DUE.items() if step != "discard"},
    "discard": {
        "discard": leases.IS_DUE["discard"],
        "spooled": f"EXISTS ({discarding.SPOOLED})",
        "erasures": erasures.IS_OPEN,
    },
    "reconcile": {
        "clock": clock_skew.IS_SET_BACK,
        "leases": " OR ".join(
            f"EXISTS (SELECT FROM {table} WHERE lease_token IS NOT NULL)" for table in leases.SUBJECT
        ),
        "jobs": f"EXISTS (SELECT FROM jobs WHERE {jobs.IS_DUE})",
        "documents": f"EXISTS (SELECT FROM projects WHERE {projects.IS_OVERWRITTEN})",
        "statuses": progress.IS_PAGE_DUE,
    },
}


def _build_claim(due: Mapping[str, str]) -> str:
    values = ", ".join(f"('{name}', {condition})" for name, condition in due.items())
    return f"""
WITH present AS MATERIALIZED (
    SELECT floor(extract(epoch FROM moment()) / %(period_seconds)s)::bigint AS slot,
           ARRAY(SELECT name FROM (VALUES {values}) AS d (name, is_due) WHERE is_due) AS due
), claimed AS (
    INSERT INTO ticks (sweep, slot, finished_at, result)
    SELECT %(sweep)s, slot, CASE WHEN due = '{{}}' THEN moment() END, CASE WHEN due = '{{}}' THEN '{{}}'::jsonb END
      FROM present
    ON CONFLICT DO NOTHING RETURNING slot
), old AS (
    DELETE FROM ticks WHERE sweep = %(sweep)s AND slot < (SELECT slot FROM present) - 100
       AND slot < (SELECT slot FROM ticks WHERE sweep = %(sweep)s AND slot < (SELECT slot FROM present)
                    ORDER BY slot DESC OFFSET 1 LIMIT 1)  -- the two before, of a daily sweep
)
SELECT slot, due FROM claimed JOIN present USING (slot) /* planned */
"""


CLAIM_SLOT: Final = {sweep: _build_claim(due) for sweep, due in {**DUE, "": {"run": "true"}}.items()}


class Tick(NamedTuple):
    """The claimed slot of a sweep, and what is due in it."""

    slot: int
    due: list[str]


def claim_slot(database: Database, sweep: str, period_seconds: float) -> Tick | None:
    """Claim the current slot of a sweep; None if another process has it. Keeps its last 100 slots, or three ticks."""
    args = {"sweep": sweep, "period_seconds": period_seconds}
    rows = database.fetch_all(CLAIM_SLOT.get(sweep) or CLAIM_SLOT[""], args)
    return Tick(**rows[0]) if rows else None


@statement("""
UPDATE ticks SET finished_at = moment(), result = %(result)s WHERE sweep = %(sweep)s AND slot = %(slot)s
""")
def record_result(conn: Connection, sweep: str, slot: int, result: Jsonb) -> QueuedQuery: ...


LATEST: Final = """
SELECT DISTINCT ON (sweep) sweep, slot, started_at, finished_at, result,
       min(started_at) FILTER (WHERE started_at > success_at) OVER (PARTITION BY sweep) AS unfinished_since
  FROM (SELECT *, coalesce(max(started_at) FILTER (WHERE finished_at IS NOT NULL) OVER (PARTITION BY sweep),
                           '-infinity') AS success_at FROM ticks WHERE started_at <= moment()) t
 ORDER BY sweep, started_at DESC  -- a longer period has smaller slots
"""


@statement(LATEST)
def list_latest(conn: Connection) -> list[Row]: ...
