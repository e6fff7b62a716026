"""Events: every state transition, inserted in the transaction that makes it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from db.connection import Connection, Row
from db.statements import F, statement


def build_event_insert(subject: str, from_state: str, to_state: str, reason: str = "NULL", **columns: str) -> str:
    """
    Return the part of a statement that inserts an event for each row of its CTE `moved`; it returns `id` and `job_id`.

    The other arguments are SQL expressions over `moved`. `columns`: kind, lease, and job_id if `moved` has none.
    """
    columns = {"job_id": "job_id", **columns}
    return f"""
INSERT INTO events (subject, subject_id, from_state, to_state, reason, actor, {", ".join(columns)})
SELECT '{subject}', id, {from_state}, {to_state}, {reason}, %(actor)s, {", ".join(columns.values())} FROM moved
RETURNING subject_id AS id, job_id"""


def records(subject: str, from_state: str, to_state: str, reason: str = "NULL", **columns: str) -> Callable[[F], F]:
    """Have a function of a statement, which returns `id` and `job_id`, insert an event for each row; see above."""

    def decorate(function: F) -> F:
        insert = build_event_insert(subject, from_state, to_state, reason, **columns)
        vars(function)["sql"] = f"WITH moved AS ({vars(function)['sql']}) {insert}"
        return function

    return decorate


MAX_ID_SPAN: Final = 500  # ids a page covers: bounds the cost of a filter that matches nothing


@statement("""
SELECT virtualtransaction AS writer FROM pg_locks
 WHERE locktype = 'relation' AND relation = 'events'::regclass AND mode = 'RowExclusiveLock' AND granted
   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
""")
def _list_writers(conn: Connection) -> set[str]: ...


@statement("""
SELECT id, subject, subject_id, from_state, to_state, kind, reason, actor, at
  FROM events WHERE job_id = %(job_id)s AND id > %(after)s
   AND subject <> ALL(%(subjects)s::text[]) AND (kind IS NULL OR kind <> ALL(%(kinds)s::text[]))
 ORDER BY id LIMIT %(limit)s
""")
def list_page_by_job(
    conn: Connection, job_id: UUID, after: int, limit: int, hidden: Mapping[str, Sequence[str]]
) -> list[Row]:
    """Return events of a job without those of the hidden `subjects` and `kinds`."""


# Reading all events without missing one: a reader that continues after the last id it saw could skip a lower one.
#
# An id is assigned before COMMIT, so a higher id may be visible before a lower one. A transaction that inserts an event
# takes the table's ROW EXCLUSIVE lock before the id is assigned and holds it until it ends. Therefore: read the last
# assigned id, then the holders of that lock. Once none of these holds it, every id up to the one read is visible or
# never will be. (`pg_snapshot_xmin` would wait for every writing transaction of the server, other databases included,
# and requires that the writer has a transaction id before the event's id is assigned.)


@dataclass(frozen=True, slots=True)
class Watermark:
    """An event id, and the open transactions that may still commit an event up to it."""

    event_id: int
    writers: frozenset[str]


def read_watermark(conn: Connection) -> Watermark:
    event_id = get_last_id(conn)  # before the writing transactions: the order matters
    return Watermark(event_id, frozenset(_list_writers(conn)))


def is_final(conn: Connection, watermark: Watermark) -> bool:
    """Return True if every event up to the watermark is visible to later statements or never will be."""
    return not watermark.writers or watermark.writers.isdisjoint(_list_writers(conn))


@statement("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM events_id_seq")
def get_last_id(conn: Connection) -> int:
    """Return the highest id assigned, committed or not; 0 before the first."""


@statement("SELECT min(id) AS id FROM events")
def get_oldest_id(conn: Connection) -> int | None: ...


@statement("""
SELECT e.id, e.subject, e.subject_id, e.job_id, j.owner, e.from_state, e.to_state, e.kind, e.reason, e.at
  FROM events e LEFT JOIN jobs j ON j.id = e.job_id WHERE e.id > %(after)s AND e.id <= %(until)s
   AND (%(job_id)s::uuid IS NULL OR e.job_id = %(job_id)s)
   AND (%(owner)s::text IS NULL OR j.owner = %(owner)s) ORDER BY e.id
""")
def list_between(
    conn: Connection, after: int, until: int, *, job_id: UUID | None = None, owner: str | None = None
) -> list[Row]:
    """Return events with after < id <= until, by id. `until`: final, and at most MAX_ID_SPAN above `after`."""
