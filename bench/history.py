"""
A database with a history: jobs of 90 days with their files, half of them of the last day, and a little live work.

The live rows are the same few for every size, so that what a query costs more in a larger history, it reads in vain.
Half a minute for each million files on an idle core; the rows obey the rules of docs/design.md, without objects.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from db.connection import Connection, fetch_all

FILES_PER_JOB: Final = 4
DAYS: Final = 90
OWNER: Final = "ann"  # has 1,000 jobs, the first of which are the oldest
OWNER_JOBS: Final = 1000
FORMER_OWNER: Final = "zoe"  # has a quarter of all jobs, none of them recent
LIVE_JOBS: Final = 100

# Ids in the order of time, as the application generates them.
_UUID7: Final = """
CREATE OR REPLACE FUNCTION pg_temp.uuid7(at timestamptz, name text) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') || '7' || substr(h, 1, 3) || '8'
            || substr(h, 4, 15))::uuid FROM (SELECT md5(name) AS h) hashed
$$
"""

# Of a hundred jobs one failed, two are partial. None was cancelled, and none has videos: filters that find nothing.
_SKETCH: Final = """
CREATE TEMP TABLE sketch AS
SELECT n, at, pg_temp.uuid7(at, 'job' || n) AS job_id, pg_temp.uuid7(at, 'prediction' || n) AS prediction_id,
       pg_temp.uuid7(at, 'delivery' || n) AS delivery_id,
       CASE WHEN n %% greatest(%(jobs)s / %(owner_jobs)s, 1) = 0 THEN %(owner)s
            WHEN n <= %(jobs)s / 4 THEN %(former_owner)s ELSE 'owner-' || n %% 500 END AS owner,
       CASE n %% 100 WHEN 1 THEN 'failed' WHEN 2 THEN 'partial' WHEN 3 THEN 'partial' ELSE 'succeeded' END AS state
  FROM (SELECT n, moment() - CASE WHEN n <= %(jobs)s / 2
                             THEN interval '1 day' + (%(jobs)s / 2 - n) * %(days)s * interval '1 day' / %(jobs)s * 2
                             ELSE interval '1 min' + (%(jobs)s - n) * interval '1 day' / %(jobs)s * 2 END AS at
          FROM generate_series(1, %(jobs)s) n) times
"""

_FILES: Final = """
CREATE TEMP TABLE files AS
SELECT n, at, job_id, prediction_id, idx, md5(n::text) || md5(idx || '-' || n) AS sha,
       pg_temp.uuid7(at, 'output' || n || '-' || idx) AS output_id,
       state = 'succeeded' OR state = 'partial' AND idx < %(files)s - 1 AS kept
  FROM sketch, generate_series(0, %(files)s - 1) idx
"""

# From the end of a job on: settled 10 s after its creation.
_ROWS: Final = (
    """
INSERT INTO jobs (id, owner, kind, style, state, category, chosen_id, created_at, deadline_at, settled_at)
SELECT job_id, owner, 'image', 'plain', state, CASE WHEN state = 'failed' THEN 'DOWNLOAD_FAILED' END, prediction_id,
       at, at + interval '1 h', at + interval '10 s' FROM sketch
""",
    """
INSERT INTO predictions (id, job_id, provider, external_id, model, state, created_at, deadline_at, ended_by, ended_at)
SELECT prediction_id, job_id, CASE n %% 3 WHEN 0 THEN 'fal' ELSE 'replicate' END, 'p' || n, 'model', 'succeeded', at,
       at + interval '1 h', CASE n %% 50 WHEN 0 THEN 'poll' ELSE 'webhook' END, at + interval '5 s' FROM sketch
""",
    """
INSERT INTO deliveries (id, provider, webhook_id, received_at, body, body_sha256, external_id, prediction_id, state,
                        run_at, ended_at)
SELECT delivery_id, CASE n %% 3 WHEN 0 THEN 'fal' ELSE 'replicate' END, 'w' || n, at + interval '4 s',
       CASE WHEN at > moment() - interval '7 d' THEN convert_to(repeat('{"id": 1}', 40), 'UTF8') END, md5('w' || n),
       'p' || n, prediction_id, 'applied', NULL, at + interval '5 s' FROM sketch
""",
    """
INSERT INTO outputs (id, job_id, prediction_id, idx, path, source_kind, source, state, category, reason, created_at,
                     expires_at, ended_at, attempt, media, format, content_type, bytes, sha256, width_px, height_px,
                     key, thumb_key, thumb_bytes, thumb_sha256)
SELECT output_id, job_id, prediction_id, idx, 'output[' || idx || ']', 'url',
       'https://replicate.delivery/' || n || '/' || idx || '.png', CASE WHEN kept THEN 'kept' ELSE 'dead' END,
       CASE WHEN NOT kept THEN 'DOWNLOAD_FAILED' END, CASE WHEN NOT kept THEN '404' END, at + interval '5 s',
       at + interval '1 h', at + idx * interval '1 s' + interval '6 s', 1, CASE WHEN kept THEN 'image' END,
       CASE WHEN kept THEN 'png' END, CASE WHEN kept THEN 'image/png' END, CASE WHEN kept THEN 1000000 END,
       CASE WHEN kept THEN sha END, CASE WHEN kept THEN 1024 END, CASE WHEN kept THEN 1024 END,
       CASE WHEN kept THEN key || '.png' END, CASE WHEN kept THEN key || '_thumb.webp' END,
       CASE WHEN kept THEN 20000 END, CASE WHEN kept THEN sha END
  FROM (SELECT *, 'renders/' || job_id || '/' || idx || '-' || left(sha, 16) || '-' || left(sha, 8) AS key
          FROM files OFFSET 0) named
""",
    """
INSERT INTO renders (id, owner, cover_idx, published_at)
SELECT job_id, owner, 0, at + interval '10 s' FROM sketch WHERE state <> 'failed'
""",
    """
INSERT INTO render_variants (render_id, idx, output_id)
SELECT job_id, idx, output_id FROM files WHERE kept
""",
    # Open are the hundred newest, in every size.
    """
INSERT INTO dead_letters (id, subject, subject_id, job_id, provider, step, category, error, reason, retryable, state,
                          created_at, closed_at, closed_by)
SELECT pg_temp.uuid7(ended_at, 'letter' || id), 'output', id, job_id, 'replicate', 'keep', 'DOWNLOAD_FAILED',
       'OutputGone', '404', true, CASE WHEN is_open THEN 'open' ELSE 'discarded' END, ended_at,
       CASE WHEN NOT is_open THEN ended_at + interval '20 s' END, CASE WHEN NOT is_open THEN 'ann' END
  FROM (SELECT id, job_id, ended_at, row_number() OVER (ORDER BY ended_at DESC, id) <= 100 AS is_open
          FROM outputs WHERE state = 'dead') dead
""",
    """
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, actor, at)
SELECT e.subject, e.id, job_id, e.before, e.after, 'a/1', at + e.seconds * interval '1 s'
  FROM sketch, LATERAL (VALUES
       ('job', job_id, NULL, 'open', 0), ('prediction', prediction_id, NULL, 'running', 1),
       ('delivery', delivery_id, NULL, 'new', 4), ('delivery', delivery_id, 'new', 'applied', 5),
       ('prediction', prediction_id, 'running', 'succeeded', 5), ('job', job_id, 'open', 'keeping', 5),
       ('output', NULL, NULL, 'waiting', 5), ('output', NULL, 'waiting', 'kept', 6),
       ('render', job_id, NULL, 'published', 10), ('job', job_id, 'keeping', state, 10)
       ) e (subject, id, before, after, seconds)
 WHERE e.subject <> 'output' AND (e.subject, state) <> ('render', 'failed')
UNION ALL
SELECT 'output', o.id, o.job_id, e.before, coalesce(e.after, o.state), 'a/1',
       CASE WHEN e.before IS NULL THEN o.created_at ELSE o.ended_at END
  FROM outputs o, (VALUES (NULL, 'waiting'), ('waiting', NULL)) e (before, after)
UNION ALL
SELECT 'dead_letter', d.id, d.job_id, e.before, coalesce(e.after, d.state), 'a/1', d.created_at
  FROM dead_letters d, (VALUES (NULL, 'open'), ('open', NULL)) e (before, after)
 WHERE e.before IS NULL OR d.state <> 'open'
 ORDER BY 7
""",
    # --- live work
    """
INSERT INTO jobs (id, owner, kind, state, created_at, deadline_at, run_at)
SELECT pg_temp.uuid7(moment(), 'live' || n), 'live', 'image', 'open', moment(), moment() + interval '1 h',
       moment() + interval '1 h' FROM generate_series(1, %(live)s) n
""",
    """
INSERT INTO predictions (id, job_id, provider, external_id, state, deadline_at, run_at)
SELECT id, id, 'replicate', 'live' || id, 'running', moment() + interval '1 h', moment() + interval '1 min'
  FROM jobs WHERE state = 'open'
""",
    """
INSERT INTO outputs (id, job_id, prediction_id, idx, path, source_kind, source, state, run_at, expires_at)
SELECT gen_random_uuid(), id, id, 0, 'output[0]', 'url', 'https://replicate.delivery/live.png', 'waiting',
       moment(), moment() + interval '1 h' FROM jobs WHERE state = 'open'
""",
    """
INSERT INTO ticks (sweep, slot, started_at, finished_at, result)
SELECT sweep, n, moment() - n * interval '1 s', moment(), '{}'
  FROM unnest('{dispatch,reconcile,drain,discard,usage}'::text[]) sweep, generate_series(1, 100) n
""",
)

_INDEXES: Final = """
SELECT indexname AS name, indexdef AS definition FROM pg_indexes i
 WHERE schemaname = 'public' AND tablename = ANY('{deliveries,jobs,predictions,outputs,renders,dead_letters,events}')
   AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = (i.schemaname || '.' || i.indexname)::regclass)
   AND indexname NOT IN ('dead_letters_open', 'jobs_idempotent')
"""


def fill(conn: Connection, outputs: int) -> None:
    """Add a history of `outputs` files to an empty, migrated database, and analyze it."""
    args = {"jobs": outputs // FILES_PER_JOB, "files": FILES_PER_JOB, "days": DAYS, "owner": OWNER}
    args |= {"owner_jobs": OWNER_JOBS, "former_owner": FORMER_OWNER, "live": LIVE_JOBS}
    with conn.transaction(), _without_indexes(conn):
        conn.execute("SET LOCAL session_replication_role = replica")  # foreign keys are not looked up a million times
        conn.execute(
            "SET LOCAL synchronous_commit = off; SET LOCAL jit = off; SET LOCAL maintenance_work_mem = '256MB'"
        )
        conn.execute(_UUID7)
        for sql in (_SKETCH, _FILES, *_ROWS):
            conn.execute(sql, args)
        conn.execute("DROP TABLE sketch, files")
    conn.execute("VACUUM ANALYZE")


@contextmanager
def _without_indexes(conn: Connection) -> Iterator[None]:
    """Build indexes once at the end, which takes a third of the time."""
    indexes = fetch_all(conn, _INDEXES)
    for index in indexes:
        conn.execute(f"DROP INDEX {index['name']}".encode())
    yield
    for index in indexes:
        conn.execute(str(index["definition"]).encode())
