"""The place of an audit that was interrupted, in `cursors`: which rows are next, and what it knows so far."""

from collections.abc import Mapping
from typing import Any, Final

from psycopg.types.json import Jsonb

from db.connection import Connection, fetch_one

NAME: Final = "audit"

SAVE: Final = """
INSERT INTO cursors (sweep, place, after_key, facts) VALUES (%(sweep)s, %(place)s, %(after_key)s, %(facts)s)
ON CONFLICT (sweep) DO UPDATE
   SET place = %(place)s, after_key = %(after_key)s, facts = %(facts)s, moved_at = moment()
"""


def save(conn: Connection, place: str, after_key: str, facts: Mapping[str, Any]) -> None:
    """Remember where the audit is; a second one that runs meanwhile overwrites it."""
    conn.execute(SAVE, {"sweep": NAME, "place": place, "after_key": after_key, "facts": Jsonb(dict(facts))})


SAVED: Final = "SELECT place, after_key, facts FROM cursors WHERE sweep = %(sweep)s"


def saved(conn: Connection) -> tuple[str, str, dict[str, Any]] | None:
    """Return place, key and facts of an audit that was interrupted; None when the last one came to its end."""
    row = fetch_one(conn, SAVED, {"sweep": NAME})
    return (row["place"], row["after_key"], row["facts"]) if row else None


FORGET: Final = "DELETE FROM cursors WHERE sweep = %(sweep)s"


def forget(conn: Connection) -> None:
    """Forget the place of an audit: it has come to its end."""
    conn.execute(FORGET, {"sweep": NAME})
