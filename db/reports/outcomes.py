"""Rows after a step, in the words in which its task reports them, and the dead letters that the step wrote."""

from collections.abc import Mapping, Sequence
from typing import Final

from db.connection import Database, Row
from moorage.model import Lease, WorkTable

_NAMES: Final[Mapping[WorkTable, str]] = {
    "deliveries": "'delivery ' || left(id::text, 18) || ' of ' || provider",
    "predictions": "'prediction ' || left(id::text, 18) || ' at ' || provider",
    "outputs": "'output ' || idx || ' of job ' || left(job_id::text, 18)",
    "notifications": "'job ' || left(job_id::text, 18)",
}
_JOB: Final = {"deliveries": "(SELECT job_id FROM predictions p WHERE p.id = prediction_id)"}
_FILE: Final = "format || ' ' || pg_size_pretty(bytes)"
# A step may write dead letters of other rows of its job: of a file whose URL is refused, of a prediction that is lost.
READ: Final[Mapping[WorkTable, str]] = {
    table: f"""
WITH claimed AS MATERIALIZED (
    SELECT id, {_JOB.get(table, "job_id")} AS job_id, state, run_at, reason, {name} AS name,
           {_FILE if table == "outputs" else "NULL"} AS file
      FROM {table} WHERE id = ANY (%(ids)s::uuid[])
)
SELECT id, state, run_at, reason, name, file, NULL::uuid AS dead_letter_id FROM claimed
UNION ALL
SELECT subject_id, 'dead', NULL, category || ': ' || reason,
       coalesce((SELECT 'output ' || idx FROM outputs o WHERE o.id = subject_id),
                subject || ' ' || left(subject_id::text, 18)) || ' of job ' || left(job_id::text, 18), NULL, d.id
  FROM dead_letters d WHERE job_id = ANY (ARRAY(SELECT job_id FROM claimed)) AND created_at >= %(since)s
   AND EXISTS (SELECT FROM events e WHERE e.subject = 'dead_letter' AND e.subject_id = d.id AND e.to_state = 'open'
                                      AND e.actor = %(actor)s)
"""
    for table, name in _NAMES.items()
}


def read_outcomes(database: Database, leases: Sequence[Lease]) -> list[Row]:
    """Return the rows of leases of one table, then the dead letters of their jobs that their holder wrote meanwhile."""
    since, actor = min(lease.claimed_at for lease in leases), leases[0].leased_by
    args = {"ids": [lease.row_id for lease in leases], "since": since, "actor": actor}
    return database.fetch_all(READ[leases[0].table], args)
