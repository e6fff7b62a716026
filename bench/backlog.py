"""A backlog of every kind: rows that are due and that no worker has served yet; and what searches in it."""

from collections.abc import Callable, Mapping
from typing import Any, Final
from uuid import UUID, uuid4

from db import deliveries, leases, output_claims, submission_turns, ticks
from db.connection import Connection, fetch_all
from moorage.model import Step
from moorage.settings import Settings

Claim = Callable[[Connection, UUID], object]

ROWS_PER_JOB: Final = 100
OWNERS: Final = 5000
CLAIMED: Final = 100  # deliveries in one claim
WAKES: Final = 64
TABLES: Final = ("outputs", "deliveries", "predictions", "notifications")

# Of the predictions of a job one reported the files of the job, the others wait: planned ones, and those to be polled.
_ROWS: Final = (
    """
CREATE TEMP TABLE backlog ON COMMIT DROP AS
SELECT gen_random_uuid() AS id, 'owner-' || n AS owner FROM generate_series(1, greatest(%(count)s / %(rows)s, 1)) n
""",
    """
INSERT INTO jobs (id, owner, kind, state, deadline_at, run_at)
SELECT id, owner, 'image', 'open', moment() + interval '1 h', moment() + interval '1 h' FROM backlog
""",
    """
INSERT INTO predictions (id, job_id, seq, entry, owner, provider, external_id, state, deadline_at, run_at)
SELECT gen_random_uuid(), id, 2 * n + 1, 0, 'owner-' || (random() * %(owners)s)::integer, 'replicate', NULL, 'planned',
       moment() + interval '1 h', moment() FROM backlog, generate_series(1, %(rows)s) n
UNION ALL
SELECT gen_random_uuid(), id, 2 * n, NULL, owner, 'fal', gen_random_uuid()::text, 'running',
       moment() + interval '1 h', moment() FROM backlog, generate_series(1, %(rows)s) n
""",
    """
INSERT INTO predictions (id, job_id, provider, external_id, state, deadline_at, ended_by, ended_at)
SELECT id, id, 'replicate', id::text, 'succeeded', moment() + interval '1 h', 'poll', moment() FROM backlog
""",
    """
INSERT INTO outputs (id, job_id, prediction_id, idx, path, source_kind, source, state, run_at, expires_at)
SELECT gen_random_uuid(), id, id, n, n, 'url', 'https://replicate.delivery/' || n || '.png', 'waiting', moment(),
       moment() + interval '1 h' + random() * interval '1 h' FROM backlog, generate_series(1, %(rows)s) n
""",
    """
INSERT INTO notifications (id, event_id, job_id, type)
SELECT gen_random_uuid(), -row_number() OVER (), id, 'job.succeeded' FROM backlog, generate_series(1, %(rows)s) n
""",
    """
INSERT INTO deliveries (id, provider, webhook_id, body, body_sha256)
SELECT gen_random_uuid(), 'replicate', n::text, 'body', 'digest' FROM generate_series(1, %(count)s) n
""",
)


def fill(conn: Connection, count: int) -> None:
    """Add `count` rows of each kind that are due to a migrated database, and analyze it."""
    with conn.transaction():
        conn.execute("SET LOCAL session_replication_role = replica")  # foreign keys are not looked up
        for sql in _ROWS:
            conn.execute(sql, {"count": count, "rows": ROWS_PER_JOB, "owners": OWNERS})
    conn.execute(f"VACUUM ANALYZE jobs, {', '.join(TABLES)}".encode())


def _claim(sql: str, **args: Any) -> Claim:
    """Return a function that claims a row with a statement."""
    work = {"token": uuid4(), "leased_by": "node@bench/1", "lease_seconds": 30.0, "max_crashes": 5}
    work |= {"worker": "node@bench/", "share": 4, **args}
    return lambda conn, row_id: conn.execute(sql, {**work, "id": row_id})


def find_last(conn: Connection, step: Step) -> UUID:
    """Return the last row of the table of a step; an id of none if it is empty."""
    rows = fetch_all(conn, f"SELECT id FROM {leases.WORK[step][0]} ORDER BY id DESC LIMIT 1")
    return UUID(str(rows[0]["id"])) if rows else uuid4()


def _wake_due(conn: Connection) -> None:
    for step in leases.DUE:
        leases.wake_due(conn, step, limit=WAKES, queue_is_empty=False, synchronous=["openai"])


def _wake_turns(conn: Connection) -> None:
    submission_turns.wake(conn, SETTINGS, {"replicate": "submit", "fal": "submit"}, limit=WAKES)
    submission_turns.list_providers(conn)


def _claim_ticks(conn: Connection) -> None:
    for sweep, sql in ticks.CLAIM_SLOT.items():
        conn.execute(sql, {"sweep": sweep, "period_seconds": 1.0})


SETTINGS: Final = Settings(_env_file=None, database_url="postgresql://bench", broker_url="redis://bench")
_PLACES: Final = submission_turns.build_limits(SETTINGS, ["replicate"])
CLAIMS: Final[Mapping[Step, Claim]] = {
    "ingest": _claim(deliveries.CLAIM_DUE, max_rows=CLAIMED, max_bytes=deliveries.MAX_BATCH_BYTES),
    "submit": _claim(submission_turns.CLAIM, **_PLACES),
    "poll": _claim(leases.CLAIM["predictions"], states=["running"]),
    "keep": _claim(output_claims.CLAIM),
    "notify": _claim(leases.CLAIM["notifications"], states=["waiting"]),
}
SEARCHES: Final[Mapping[str, Callable[[Connection], object]]] = {
    "ticks": _claim_ticks,
    "due rows": _wake_due,
    "due outputs": lambda conn: output_claims.wake_outputs(conn, limit=WAKES, queued=0),
    "turns": _wake_turns,
}
