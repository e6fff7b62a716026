"""What the orphan sweep asks of PostgreSQL: whether a key can still be recorded, and where a sweep stopped."""

from dataclasses import dataclass
from typing import Final, Literal
from uuid import UUID

from db import objects
from db.connection import Connection, fetch_one

ReferenceKind = Literal["named", "leased"]

LEASE: Final = "SELECT lease_token FROM outputs WHERE job_id = %(render_id)s AND idx = %(idx)s"

LOCK: Final = f"{LEASE} FOR UPDATE"


def find_reference(
    conn: Connection, key: str, render_id: UUID, idx: int, token_prefix: str, *, lock: bool
) -> ReferenceKind | None:
    """
    Return why the object of an output must stay, or None when no row can ever name it any more.

    A lease that is only late still counts: its holder may revive it.

    Args:
        lock: wait under the output's row lock for whoever is about to record the key; the names are then read by a
            statement of their own, with a snapshot that sees what the lock waited for.
    """
    row = fetch_one(conn, LOCK if lock else LEASE, {"render_id": render_id, "idx": idx})
    if key in objects.find_referenced_keys(conn, [key]):
        return "named"
    token: UUID | None = row["lease_token"] if row else None
    return "leased" if token is not None and token.hex.startswith(token_prefix) else None


@dataclass(frozen=True, slots=True)
class ScanCursor:
    """Where a sweep stopped: in which listing, behind which key."""

    listing: str
    after_key: str


CURSOR: Final = "SELECT place, after_key FROM cursors WHERE sweep = %(sweep)s"


def load_cursor(conn: Connection, sweep: str) -> ScanCursor | None:
    """Return where the last run of a sweep stopped; None when it came to the end."""
    row = fetch_one(conn, CURSOR, {"sweep": sweep})
    return ScanCursor(row["place"], row["after_key"]) if row else None


MOVE: Final = """
INSERT INTO cursors (sweep, place, after_key) VALUES (%(sweep)s, %(place)s, %(after_key)s)
ON CONFLICT (sweep) DO UPDATE SET place = %(place)s, after_key = %(after_key)s, moved_at = moment()
"""

FORGET: Final = "DELETE FROM cursors WHERE sweep = %(sweep)s"


def save_cursor(conn: Connection, sweep: str, to: ScanCursor | None) -> None:
    """Remember where a sweep is; None: at the end."""
    if to is None:
        conn.execute(FORGET, {"sweep": sweep})
    else:
        conn.execute(MOVE, {"sweep": sweep, "place": to.listing, "after_key": to.after_key})
