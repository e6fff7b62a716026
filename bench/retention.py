"""
`make bench PART=retention`: rows that retention deletes a second, beside a history of one day and of five.

A day has 10,000 failed jobs, each with a prediction, a delivery, an output, a closed dead letter and eleven events.
2,000 older jobs stay: they have open dead letters, with files in quarantine.
"""

import os
import tempfile
import time
from pathlib import Path
from typing import Final

from bench.results import Run, Table
from db import migrate
from db.connection import Connection, connect
from embedded.stack import Stack
from moorage import settings
from tasks.sweeps import retention
from worker import boot

JOBS: Final = 10_000
STUCK: Final = 2_000
OLDEST_DAYS: Final = 100
HISTORIES: Final = (1, 5)

_JOBS: Final = """
CREATE TEMP TABLE made AS
SELECT gen_random_uuid() AS job_id, gen_random_uuid() AS prediction_id, gen_random_uuid() AS delivery_id,
       gen_random_uuid() AS output_id, gen_random_uuid() AS letter_id, %(is_open)s::boolean AS is_open,
       moment() - %(days)s * interval '1 day' + n * interval '1 s' AS at
  FROM generate_series(1, %(count)s) n
"""
_ROWS: Final = (
    """
INSERT INTO jobs (id, owner, kind, chosen_id, state, category, created_at, deadline_at, settled_at)
SELECT job_id, 'ann', 'image', prediction_id, 'failed', 'DOWNLOAD_FAILED', at, at, at FROM made
""",
    """
INSERT INTO predictions (id, job_id, provider, external_id, state, created_at, deadline_at, ended_by, ended_at)
SELECT prediction_id, job_id, 'replicate', prediction_id, 'succeeded', at, at, 'webhook', at FROM made
""",
    """
INSERT INTO deliveries (id, provider, webhook_id, received_at, body_sha256, prediction_id, state, run_at, ended_at)
SELECT delivery_id, 'replicate', delivery_id, at, '', prediction_id, 'applied', NULL, at FROM made
""",
    """
INSERT INTO outputs (id, job_id, prediction_id, idx, path, source_kind, source, state, category, created_at, ended_at,
                     quarantine_key, quarantine_bytes, quarantine_sha256, quarantined_at)
SELECT output_id, job_id, prediction_id, 0, 'output', 'url', 'https://x.example/', 'dead', 'DOWNLOAD_FAILED', at, at,
       CASE WHEN is_open THEN output_id::text END, CASE WHEN is_open THEN 1 END,
       CASE WHEN is_open THEN repeat('0', 64) END, CASE WHEN is_open THEN moment() END FROM made
""",
    """
INSERT INTO dead_letters (id, subject, subject_id, job_id, step, category, error, reason, retryable, state, created_at,
                          closed_at, closed_by)
SELECT letter_id, 'output', output_id, job_id, 'keep', 'DOWNLOAD_FAILED', 'OutputGone', '404', true,
       CASE WHEN is_open THEN 'open' ELSE 'discarded' END, at, CASE WHEN NOT is_open THEN at END,
       CASE WHEN NOT is_open THEN 'ann' END FROM made
""",
    """
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, actor, at)
SELECT subject, id, job_id, CASE WHEN n > 1 THEN 'a' END, 'b', 'a/1', at
  FROM made, LATERAL (VALUES ('job', job_id, 3), ('prediction', prediction_id, 2), ('delivery', delivery_id, 2),
                             ('output', output_id, 2), ('dead_letter', letter_id, 2)) e (subject, id, count),
       generate_series(1, count) n
""",
)


def main() -> None:
    run = Run("retention")
    rows = []
    for days in HISTORIES:
        with tempfile.TemporaryDirectory() as folder, Stack(Path(folder)) as stack:
            os.environ.update(stack.environment())
            seconds, done = _measure(stack.postgres.create_database("retention"), days)
        if done["jobs"] != JOBS:
            raise SystemExit(f"{done['jobs']} of {JOBS} jobs were deleted")
        deleted = 4 * done["jobs"] + done["deliveries"]
        run.figures[str(days)] = {"seconds": seconds, **done}
        rows.append([f"{days * JOBS:,}", f"{done['jobs']:,}", f"{seconds:.1f} s", f"{deleted / seconds:,.0f}"])
        run.note_load()
    columns = ["jobs of the history", "jobs deleted, with their rows", "time", "rows/s, without events"]
    run.tables = [Table(columns, rows)]
    run.notes = [f"{STUCK:,} older jobs with open dead letters were passed."]
    run.save()


def _measure(url: str, days: int) -> tuple[float, dict[str, int]]:
    """Delete the oldest day of a new database; return the time, and what was deleted."""
    os.environ["DATABASE_URL"] = url
    conn = connect(url)
    migrate.migrate(conn)
    _fill(conn, STUCK, OLDEST_DAYS + 1, is_open=True)
    for day in range(days):
        _fill(conn, JOBS, OLDEST_DAYS - day)
    conn.execute("VACUUM ANALYZE")
    conn.close()
    settings.get_settings.cache_clear()
    boot._deps.cache_clear()
    os.environ["MOORAGE_RETENTION_DAYS"] = f"rows={OLDEST_DAYS - 0.5}"
    started = time.perf_counter()
    done = retention.delete_expired(boot.get_deps(), "bench")
    return time.perf_counter() - started, done


def _fill(conn: Connection, count: int, days: int, *, is_open: bool = False) -> None:
    with conn.transaction():
        conn.execute("SET LOCAL session_replication_role = replica; SET LOCAL synchronous_commit = off")
        for sql in (_JOBS, *_ROWS):
            conn.execute(sql, {"count": count, "days": days, "is_open": is_open})
        conn.execute("DROP TABLE made")


if __name__ == "__main__":
    main()
