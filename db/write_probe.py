"""
Proves that a webhook can be recorded now: the probe writes what a webhook writes, and rolls it back.

A server that answers queries may still refuse every webhook: read-only, its disk full, `deliveries` locked, a
synchronous standby missing.
"""

from typing import Final

import psycopg
from psycopg import errors as pg

# As large as a page of the table and one of its TOAST table take, in random bytes, which do not compress: a row that
# still fitted into the last page of a full disk would prove nothing about the next webhook.
WRITE: Final = """
WITH probe AS (
    INSERT INTO deliveries (id, provider, webhook_id, headers, body, body_sha256)
    SELECT gen_random_uuid(), 'probe', gen_random_uuid()::text,
           jsonb_build_object('probe', (SELECT string_agg(gen_random_uuid()::text, '') FROM generate_series(1, 40))),
           (SELECT string_agg(uuid_send(gen_random_uuid()), '') FROM generate_series(1, 480)), ''
    RETURNING id, state
)
INSERT INTO events (subject, subject_id, from_state, to_state, actor)
SELECT 'delivery', id, NULL, state, 'probe' FROM probe
"""
# One round trip; it waits for no lock longer than a webhook may. The message leaves no row, but it is committed: that
# proves the WAL and a synchronous standby, which a rollback does not wait for.
WRITE_PROBE: Final = (
    f"BEGIN; SET LOCAL lock_timeout = '1s'; SET LOCAL statement_timeout = '1900ms'; {WRITE}; ROLLBACK;"
    " SELECT pg_logical_emit_message(true, 'moorage probe', '')"
)

_PROBLEMS: Final[tuple[tuple[type[psycopg.Error], str], ...]] = (
    (pg.UndefinedTable, "the database has no schema: run `moorage migrate`"),
    (
        pg.ReadOnlySqlTransaction,
        "PostgreSQL is read-only: point DATABASE_URL to the primary, or free its disk if the provider made it so",
    ),
    (pg.DiskFull, "PostgreSQL's disk is full: free or enlarge it"),
    (pg.LockNotAvailable, "another transaction holds a lock on deliveries or events: see pg_stat_activity and end it"),
    (pg.InsufficientPrivilege, "PostgreSQL denies a permission: moorage's user must own the tables"),
    (pg.QueryCanceled, "PostgreSQL did not write within 2 s: check its load and its disk"),
)


def describe_refusal(error: psycopg.Error) -> str:
    """Return what prevents the recording of webhooks, and what to do."""
    for kind, problem in _PROBLEMS:
        if isinstance(error, kind):
            return problem
    if error.sqlstate is None or (isinstance(error, pg.OperationalError) and error.sqlstate[:2] in ("08", "57", "28")):
        return f"PostgreSQL is unavailable ({type(error).__name__}): check DATABASE_URL and the server"
    return f"PostgreSQL refuses to record webhooks ({type(error).__name__}, SQLSTATE {error.sqlstate}): see its log"
