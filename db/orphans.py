"""Queries of the orphan sweep: whether a row may still reference a key, and where a scan stopped."""

from dataclasses import asdict, dataclass
from typing import Final, Literal
from uuid import UUID

from db import objects
from db.connection import Connection, fetch_one
from db.statements import statement

ReferenceKind = Literal["named", "leased", "unreferenced"]

GET_LEASE: Final = "SELECT lease_token FROM outputs WHERE job_id = %(render_id)s AND idx = %(idx)s"

LOCK_OUTPUT: Final = f"{GET_LEASE} FOR UPDATE"


def find_reference(
    conn: Connection, key: str, render_id: UUID, idx: int, token_prefix: str, *, lock: bool
) -> ReferenceKind:
    """
    Return how an output row references a key; `unreferenced`: no row can ever reference it.

    An expired lease still counts: its holder may renew it. `lock` waits for a worker that is recording the key; a
    second statement, with a later snapshot, then reads the references.
    """
    row = fetch_one(conn, LOCK_OUTPUT if lock else GET_LEASE, {"render_id": render_id, "idx": idx})
    if key in objects.find_referenced_keys(conn, [key]):
        return "named"
    token: UUID | None = row["lease_token"] if row else None
    return "leased" if token is not None and token.hex.startswith(token_prefix) else "unreferenced"


@dataclass(frozen=True, slots=True)
class ScanCursor:
    """The position of a scan: a listing and the last key processed."""

    listing: str
    after_key: str


@statement("SELECT place AS listing, after_key FROM cursors WHERE sweep = %(sweep)s")
def load_cursor(conn: Connection, sweep: str) -> ScanCursor | None: ...


DELETE_CURSOR: Final = "DELETE FROM cursors WHERE sweep = %(sweep)s"
SAVE_CURSOR: Final = """
INSERT INTO cursors (sweep, place, after_key) VALUES (%(sweep)s, %(listing)s, %(after_key)s)
ON CONFLICT (sweep) DO UPDATE SET place = excluded.place, after_key = excluded.after_key, moved_at = moment()
"""


def save_cursor(conn: Connection, sweep: str, position: ScanCursor | None) -> None:
    """Store the position of a sweep; None deletes it: the next run starts from the beginning."""
    conn.execute(SAVE_CURSOR if position else DELETE_CURSOR, {"sweep": sweep, **(asdict(position) if position else {})})
