"""
The checks of the audit: the rules of docs/design.md 5 as statements over pages of rows in key order.

The recheck runs the same statement on the rows found by the first one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from db.audit.check import SUBJECTS, Check
from db.audit.history_checks import EVENTS_OF, HISTORY
from db.audit.row_checks import ROWS
from db.connection import Connection, Row, fetch_all
from db.projects import build_key_columns

LONG_TIMEOUTS: Final = "SET LOCAL statement_timeout = '15min'; SET LOCAL idle_in_transaction_session_timeout = '1min'"

CHECKS: Final[Mapping[Check, str]] = {**ROWS, **HISTORY}

# Only in a deep audit: reads the bodies.
DEEP_ONLY: Final = frozenset({Check(1, "deliveries", "bytes")})

PAGES: Final[Mapping[str, str]] = (
    {
        table: f"SELECT id::text AS key FROM {table} WHERE id > %(after)s::uuid ORDER BY id LIMIT %(limit)s"
        for table in SUBJECTS
    }
    | {
        "projects": f"""
SELECT owner || '/' || id AS key FROM projects
 WHERE (owner, id) > ({build_key_columns("%(after)s")})
 ORDER BY owner, id LIMIT %(limit)s"""
    }
    | {
        scope: f"""
SELECT DISTINCT subject_id::text AS key, subject_id FROM events
 WHERE subject = '{subject}' AND subject_id > %(after)s::uuid ORDER BY subject_id LIMIT %(limit)s"""
        for subject, scope in EVENTS_OF.items()
    }
)

_FIRST: Final = "00000000-0000-0000-0000-000000000000"


def list_checks(scope: str, *, deep: bool) -> list[Check]:
    return [check for check in CHECKS if check.scope == scope and (deep or check not in DEEP_ONLY)]


def list_keys(conn: Connection, scope: str, after: str, *, limit: int) -> list[str]:
    """Return a page of the keys of a scope, in order, after a key ("" for the first page)."""
    start = after or ("/" if scope == "projects" else _FIRST)
    return [row["key"] for row in fetch_all(conn, PAGES[scope], {"after": start, "limit": limit})]


def find_violations(conn: Connection, check: Check, keys: Sequence[str], args: Mapping[str, Any]) -> list[Row]:
    """Return violations: subject, id (text), what. `args`: lease_seconds, overdue_seconds (of unleased rows)."""
    conn.execute(LONG_TIMEOUTS)
    return fetch_all(conn, CHECKS[check], {**args, "ids": list(keys)})
