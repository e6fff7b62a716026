"""Request the erasure of an owner; tasks/erasure.py carries it out. Apart, since the API may not load storage."""

from datetime import UTC, datetime

from db import erasures, owner_limits, owner_token_revocations
from db.connection import Connection, Database, Row
from moorage import ids, logs
from moorage.owner_tokens import owner_subject

log = logs.get_logger(__name__)


def request_erasure(database: Database, owner: str) -> Row:
    """Record that an owner is to be erased and revoke its tokens; return the erasure. Repeating is safe."""

    def record(conn: Connection) -> Row:
        owner_limits.lock(conn, owner)  # an upload is recorded before, and erased, or refused
        owner_token_revocations.add(conn, owner_subject(owner), datetime.now(UTC))
        return erasures.request(conn, ids.uuid7(), owner)

    erasure = database.run(record, point="erase_request")
    log.info("erasure.requested", erasure_id=erasure["id"])
    return erasure
