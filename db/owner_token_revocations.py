"""Revocations of owner tokens that have not expired: of one token, or of all that an owner has had until then."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from db.connection import Connection, fetch_all
from moorage.owner_tokens import MAX_LIFETIME_SECONDS, OwnerToken

# `at` is the time of the process that issues tokens, of which `expires_at` is the end of the longest one.
ADD: Final = """
WITH expired AS (DELETE FROM owner_token_revocations WHERE expires_at < %(at)s::timestamptz - interval '1 day')
INSERT INTO owner_token_revocations AS r (subject, revoked_at, expires_at) VALUES (%(subject)s, %(at)s, %(expires_at)s)
ON CONFLICT (subject) DO UPDATE SET revoked_at = greatest(r.revoked_at, excluded.revoked_at),
       expires_at = greatest(r.expires_at, excluded.expires_at)
"""


def add(conn: Connection, subject: str, at: datetime) -> None:
    """Refuse the tokens of a subject (see `OwnerToken.subjects`) that were issued until `at`."""
    expires_at = at + timedelta(seconds=MAX_LIFETIME_SECONDS)
    conn.execute(ADD, {"subject": subject, "at": at, "expires_at": expires_at})


FIND: Final = "SELECT subject, revoked_at FROM owner_token_revocations WHERE subject = ANY(%(subjects)s::text[])"


def find(conn: Connection, tokens: Sequence[OwnerToken]) -> dict[str, datetime]:
    subjects = {subject for token in tokens for subject in token.subjects}
    return {row["subject"]: row["revoked_at"] for row in fetch_all(conn, FIND, {"subjects": list(subjects)})}
