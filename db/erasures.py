"""Erasures: everything of an owner is removed, by owner and in pages, until nothing is left (docs/design.md)."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from psycopg.types.json import Jsonb

from db import owner_limits, owner_token_revocations, quarantine, retention
from db.connection import Connection, Row, fetch_all, fetch_one
from db.objects import LONG_TIMEOUT
from db.statements import statement
from moorage.owner_tokens import owner_subject

WAIT_SECONDS: Final = 600.0  # for predictions to end at their providers
IS_OPEN: Final = "EXISTS (SELECT FROM erasures WHERE finished_at IS NULL)"
_COLUMNS: Final = "id, owner, requested_at, finished_at, removed"


@statement(f"""
INSERT INTO erasures (id, owner) VALUES (%(new_id)s, %(owner)s)
ON CONFLICT (owner) DO UPDATE SET owner = excluded.owner RETURNING {_COLUMNS}
""")
def request(conn: Connection, new_id: UUID, owner: str) -> Row:
    """Insert an erasure; return it, or the one of this owner that is not finished."""


@statement(f"SELECT {_COLUMNS} FROM erasures WHERE id = %(erasure_id)s")
def get(conn: Connection, erasure_id: UUID) -> Row | None: ...


@statement(f"SELECT {_COLUMNS} FROM erasures WHERE finished_at IS NULL ORDER BY requested_at LIMIT 100")
def list_unfinished(conn: Connection) -> list[Row]: ...


@statement("""
SELECT id FROM jobs WHERE owner = %(owner)s AND id > %(after)s ORDER BY owner, id LIMIT %(limit)s
""")
def list_job_ids(conn: Connection, owner: str, after: UUID, limit: int) -> list[UUID]: ...


# Only while the erasure is not finished: afterwards the name may be in use again.
@statement("SELECT id FROM jobs WHERE id = %(job_id)s AND owner IN (SELECT owner FROM erasures) FOR UPDATE")
def lock_job(conn: Connection, job_id: UUID) -> bool:
    """Lock a job; return False if another process has erased it, or finished the erasure."""


# A live job was created or reopened since it was listed.
@statement(f"""
SELECT j.id, ARRAY(SELECT source FROM outputs o WHERE o.job_id = j.id AND o.source_kind = 'object'
                                                  AND o.source IS NOT NULL) AS inputs
  FROM jobs j JOIN erasures e ON e.owner = j.owner
 WHERE j.id = ANY(%(job_ids)s::uuid[]) AND j.settled_at IS NOT NULL
   AND NOT EXISTS (SELECT FROM renders r WHERE r.id = j.id AND r.deleted_at IS NULL)
   AND (e.requested_at < moment() - make_interval(secs => {WAIT_SECONDS})
        OR NOT EXISTS (SELECT FROM predictions p WHERE p.job_id = j.id AND p.state IN ('submitting', 'running')))
""")
def list_erasable(conn: Connection, job_ids: Sequence[UUID]) -> list[Row]:
    """Return those of an owner's jobs whose rows may be deleted, with the keys of their spooled inputs."""


@statement(f"""
UPDATE outputs SET {quarantine.RELEASE} WHERE job_id = %(job_id)s AND quarantine_key IS NOT NULL
""")
def release_quarantined(conn: Connection, job_id: UUID) -> None:
    """Forget the refused files of a job, before their objects are deleted."""


REMEMBER: Final = """
WITH old AS (DELETE FROM erased_predictions WHERE erased_at < moment() - interval '30 days')
INSERT INTO erased_predictions (provider, name)
SELECT p.provider, n.name FROM predictions p
 CROSS JOIN LATERAL (VALUES (p.external_id), ('key ' || p.key_sha256)) AS n (name)
 WHERE n.name IS NOT NULL AND p.job_id = ANY(%(ids)s::uuid[])
ON CONFLICT DO NOTHING
"""
_COUNTED: Final = ("notifications", "renders", "outputs", "deliveries", "predictions", "jobs")


# It is known by the external id of the delivery, or by the key in its URL.
@statement("""
SELECT id FROM deliveries
 WHERE prediction_id IS NULL
   AND ((provider, external_id) IN (SELECT provider, name FROM erased_predictions)
        OR (provider, 'key ' || key_sha256) IN (SELECT provider, name FROM erased_predictions))
 ORDER BY id FOR UPDATE
""")
def _lock_stray_deliveries(conn: Connection) -> list[UUID]:
    """Lock the deliveries that were not applied to their prediction, which is erased; return them."""


@statement("""
UPDATE erasures SET removed = (SELECT coalesce(jsonb_object_agg(key, total), '{}') FROM (
           SELECT key, sum(value::bigint) AS total
             FROM (SELECT * FROM jsonb_each_text(removed) UNION ALL SELECT * FROM jsonb_each_text(%(counts)s::jsonb)) c
            GROUP BY key) s)
 WHERE id = %(erasure_id)s
""")
def _add_counts(conn: Connection, erasure_id: UUID, counts: Jsonb) -> None: ...


def erase_jobs(conn: Connection, erasure: Row, job_ids: Sequence[UUID], objects: int) -> None:
    """Delete jobs and all their rows, live or not; add their numbers and that of deleted objects to the report."""
    locked = fetch_all(conn, f"{retention.DELIVERIES} ORDER BY id FOR UPDATE", {"ids": job_ids})
    deliveries = [row["id"] for row in locked]
    conn.execute(retention.LOCK_JOBS, {"ids": job_ids})
    conn.execute(REMEMBER, {"ids": job_ids})
    counts = _drop(conn, job_ids, deliveries)
    add_counts(conn, erasure, {**counts, "objects": objects})


def delete_stray_deliveries(conn: Connection, erasure: Row) -> int:
    """Delete the deliveries that name an erased prediction, but were not applied to it; return their number."""
    conn.execute(LONG_TIMEOUT)
    found = _lock_stray_deliveries(conn)
    if found:
        add_counts(conn, erasure, _drop(conn, [], found))
    return len(found)


def _drop(conn: Connection, job_ids: Sequence[UUID], deliveries: Sequence[UUID]) -> dict[str, int]:
    args = {"ids": job_ids, "deliveries": deliveries}
    counts = {name: conn.execute(sql, args).rowcount for name, sql in retention.DROP_JOBS.items()}
    return {name: counts[name] for name in _COUNTED}


def add_counts(conn: Connection, erasure: Row, counts: Mapping[str, int]) -> None:
    _add_counts(conn, erasure["id"], Jsonb({name: count for name, count in counts.items() if count}))


@statement("""
UPDATE uploads SET deleted_at = moment()
 WHERE owner = %(owner)s AND deleted_at IS NULL AND owner IN (SELECT owner FROM erasures)
""")
def mark_uploads(conn: Connection, owner: str) -> None: ...


def drop_uploads(conn: Connection, erasure: Row, objects: int) -> None:
    sql = "DELETE FROM uploads WHERE owner = %(owner)s AND deleted_at IS NOT NULL"
    count = conn.execute(sql, {"owner": erasure["owner"]}).rowcount
    add_counts(conn, erasure, {"uploads": count, "objects": objects})


DROP_OTHERS: Final = {
    "projects": """
DELETE FROM projects p WHERE p.owner = %(owner)s
   AND NOT EXISTS (SELECT FROM jobs j WHERE j.owner = p.owner AND j.project_id = p.id)
""",
    "storage_use": "DELETE FROM storage_use WHERE owner = %(owner)s",
    # Positions of sweeps: each starts again at the beginning.
    "cursors": """
DELETE FROM cursors WHERE starts_with(after_key, %(owner)s || '/') OR starts_with(after_key, %(prefix)s)
                       OR starts_with(after_key, 'quarantine/' || %(prefix)s)
""",
}
LOCK: Final = "SELECT owner FROM erasures WHERE id = %(id)s AND owner IS NOT NULL FOR UPDATE"
FINISH: Final = f"""
UPDATE erasures e SET owner = NULL, finished_at = moment()
 WHERE e.id = %(id)s AND e.owner IS NOT NULL
   AND NOT EXISTS (SELECT FROM jobs WHERE owner = e.owner) AND NOT EXISTS (SELECT FROM uploads WHERE owner = e.owner)
   AND NOT EXISTS (SELECT FROM projects WHERE owner = e.owner)
RETURNING {_COLUMNS}
"""


def finish(conn: Connection, erasure: Row, upload_prefix: str) -> Row | None:
    """Delete projects and derived rows; return the finished erasure, or None if something of the owner is left."""
    args = {"owner": erasure["owner"], "prefix": upload_prefix}
    owner_limits.lock(conn, erasure["owner"])
    if fetch_one(conn, LOCK, {"id": erasure["id"]}) is None:
        return None
    counts = {name: conn.execute(sql, args).rowcount for name, sql in DROP_OTHERS.items()}
    add_counts(conn, erasure, {"projects": counts["projects"]})
    finished = fetch_one(conn, FINISH, {"id": erasure["id"]})
    if finished is not None:  # an upload that began before is refused: its object may have been deleted
        owner_token_revocations.add(conn, owner_subject(erasure["owner"]), datetime.now(UTC))
    return finished


@statement("""
SELECT name FROM erased_predictions
 WHERE provider = %(provider)s AND name IN (%(external_id)s, 'key ' || %(key_sha256)s) LIMIT 1
""")
def is_erased(conn: Connection, provider: str, external_id: str, key_sha256: str | None) -> bool: ...


@statement("UPDATE deliveries SET body = NULL WHERE id = %(delivery_id)s")
def purge_body(conn: Connection, delivery_id: UUID) -> None: ...
