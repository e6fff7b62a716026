"""Refused files in quarantine, named by their outputs: recorded under the lease, released when kept or too old."""

from typing import Any, Final
from uuid import UUID

from db.connection import Connection, Row
from db.statements import statement
from moorage.model import Lease, Output

# The object remains; no row names it then, and the orphan sweep deletes it once it is old enough.
RELEASE: Final = (
    "quarantine_key = NULL, quarantine_bytes = NULL, quarantine_sha256 = NULL, quarantine_type = NULL,"
    " quarantined_at = NULL"
)


@statement("""
UPDATE outputs
   SET quarantine_key = %(key)s, quarantine_bytes = %(size_bytes)s, quarantine_sha256 = %(sha256)s,
       quarantine_type = %(declared_type)s, quarantined_at = moment()
 WHERE id = %(id)s AND lease_token = %(token)s RETURNING id
""")
def record(
    conn: Connection, lease: Lease, key: str, size_bytes: int, sha256: str, declared_type: str | None
) -> None: ...


@statement("UPDATE outputs SET quarantined_at = moment() WHERE id = %(id)s AND lease_token = %(token)s RETURNING id")
def extend(conn: Connection, lease: Lease) -> None:
    """Start the retention period of a file in quarantine again. Raises LeaseLost."""


@statement(f"UPDATE outputs SET {RELEASE} WHERE id = %(id)s AND lease_token = %(token)s RETURNING id")
def forget(conn: Connection, lease: Lease) -> None: ...


@statement("""
SELECT quarantine_key AS key, quarantine_bytes AS bytes, quarantine_sha256 AS sha256, quarantine_type AS declared_type,
       quarantined_at
  FROM outputs WHERE id = %(output_id)s AND quarantine_key IS NOT NULL
""")
def find(conn: Connection, output_id: UUID) -> Row | None: ...


def get_facts(output: Output) -> dict[str, Any]:
    """Return the facts of a dead letter: what is stored of the file, else until when its source lives."""
    if output.quarantine_key is not None:
        facts = (output.quarantine_key, output.quarantine_bytes, output.quarantine_sha256)
        return dict(zip(("quarantine_key", "bytes", "sha256"), facts, strict=True))
    return {"expires_at": output.expires_at.isoformat()} if output.expires_at else {}
