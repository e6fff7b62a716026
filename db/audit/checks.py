"""
The rules of docs/design.md 5 as statements over a page of rows, and the pages: in key order, each bounded.

The name of a check is the number of its rule, the place whose rows it is asked of, and a word: "3 renders cover". A
second look asks the same statement for the rows that the first one found.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from db.audit.history_checks import GONE, HISTORY
from db.audit.row_checks import ROWS
from db.audit.work_checks import WORK
from db.connection import Connection, Row, fetch_all

PATIENT: Final = "SET LOCAL statement_timeout = '15min'; SET LOCAL idle_in_transaction_session_timeout = '1min'"

CHECKS: Final[Mapping[str, str]] = {**ROWS, **WORK, **HISTORY, **GONE}

# Those that read what a listing does not show: asked by a deep audit only.
DEEP: Final = frozenset({"1 deliveries bytes"})

TABLES: Final = ("deliveries", "jobs", "predictions", "outputs", "renders", "notices", "dead_letters", "projects")

PAGES: Final[Mapping[str, str]] = {
    table: f"""
SELECT id::text AS key FROM {table} WHERE id > %(after)s::{"text" if table == "projects" else "uuid"}
 ORDER BY id LIMIT %(limit)s
"""
    for table in TABLES
} | {
    name.split()[1]: f"""
SELECT DISTINCT subject_id::text AS key, subject_id FROM events
 WHERE subject = '{name.split()[1].removesuffix("_events")}' AND subject_id > %(after)s::uuid
 ORDER BY subject_id LIMIT %(limit)s
"""
    for name in GONE
}

_FIRST: Final = "00000000-0000-0000-0000-000000000000"


def list_checks(place: str, *, deep: bool) -> list[str]:
    """Return the names of the checks over the rows of a place."""
    return [name for name in CHECKS if name.split()[1] == place and (deep or name not in DEEP)]


def list_keys(conn: Connection, place: str, after: str, *, limit: int) -> list[str]:
    """Return the keys of a place in their order, from behind one ("" for the first)."""
    start = after or ("" if place == "projects" else _FIRST)
    return [row["key"] for row in fetch_all(conn, PAGES[place], {"after": start, "limit": limit})]


def find_violations(conn: Connection, name: str, keys: Sequence[str], args: Mapping[str, Any]) -> list[Row]:
    """
    Return which of some rows break a rule: subject, id (text), what.

    Args:
        args: lease_seconds; overdue_seconds, how late a row may be that nobody holds.
    """
    conn.execute(PATIENT)
    wanted = {key: value for key, value in args.items() if f"%({key})s" in CHECKS[name]}
    return fetch_all(conn, CHECKS[name], {**wanted, "ids": list(keys)})
