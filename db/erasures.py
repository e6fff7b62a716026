"""Erasures: everything of an owner is removed, by owner and in pages, until nothing is left (docs/design.md)."""

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

from psycopg.types.json import Jsonb

from db import quarantine, retention
from db.connection import Connection, Row, fetch_all, fetch_one
from db.objects import LONG_TIMEOUT
from db.statements import statement
from moorage import ids

WAIT_SECONDS: Final = 600.0  # for predictions to end at their providers
_COLUMNS: Final = "id, owner, requested_at, finished_at, removed"

REQUEST: Final = f"""
INSERT INTO erasures (id, owner) VALUES (%(id)s, %(owner)s)
ON CONFLICT (owner) DO UPDATE SET owner = excluded.owner RETURNING {_COLUMNS}
"""
IS_OPEN: Final = "EXISTS (SELECT FROM erasures WHERE finished_at IS NULL)"


def request(conn: Connection, owner: str) -> Row:
    """Insert an erasure; return it, or the one of this owner that is not finished."""
    row = fetch_one(conn, REQUEST, {"id": ids.uuid7(), "owner": owner})
    return row or {}


@statement(f"SELECT {_COLUMNS} FROM erasures WHERE id = %(erasure_id)s")
def get(conn: Connection, erasure_id: UUID) -> Row | None: ...


@statement(f"SELECT {_COLUMNS} FROM erasures WHERE finished_at IS NULL ORDER BY requested_at LIMIT 100")
def list_unfinished(conn: Connection) -> list[Row]: ...


# A live job was created or reopened since it was listed.
LIST_ERASABLE: Final = """
SELECT j.id, ARRAY(SELECT source FROM outputs o WHERE o.job_id = j.id AND o.source_kind = 'object'
                                                  AND o.source IS NOT NULL) AS inputs
  FROM jobs j JOIN erasures e ON e.owner = j.owner
 WHERE j.id = ANY(%(ids)s::uuid[]) AND j.settled_at IS NOT NULL
   AND NOT EXISTS (SELECT FROM renders r WHERE r.id = j.id AND r.deleted_at IS NULL)
   AND (e.requested_at < moment() - make_interval(secs => %(wait_seconds)s)
        OR NOT EXISTS (SELECT FROM predictions p WHERE p.job_id = j.id AND p.state IN ('submitting', 'running')))
"""


@statement("""
SELECT id FROM jobs WHERE owner = %(owner)s AND id > %(after)s ORDER BY owner, id LIMIT %(limit)s
""")
def list_job_ids(conn: Connection, owner: str, after: UUID, limit: int) -> list[UUID]: ...


# Only while the erasure is not finished: afterwards the name may be in use again.
@statement("SELECT id FROM jobs WHERE id = %(job_id)s AND owner IN (SELECT owner FROM erasures) FOR UPDATE")
def lock_job(conn: Connection, job_id: UUID) -> bool:
    """Lock a job; return False if another process has erased it, or finished the erasure."""


def list_erasable(conn: Connection, job_ids: Sequence[UUID]) -> list[Row]:
    """Return those of an owner's jobs whose rows may be deleted, with the keys of their spooled inputs."""
    return fetch_all(conn, LIST_ERASABLE, {"ids": job_ids, "wait_seconds": WAIT_SECONDS})


@statement(f"""
UPDATE outputs SET {quarantine.RELEASE} WHERE job_id = %(job_id)s AND quarantine_key IS NOT NULL
""")
def release_quarantined(conn: Connection, job_id: UUID) -> None:
    """Forget the refused files of a job, before their objects are deleted."""


LOCK_DELIVERIES: Final = f"{retention.DELIVERIES} ORDER BY id FOR UPDATE"
REMEMBER: Final = """
WITH old AS (DELETE FROM erased_predictions WHERE erased_at < moment() - interval '30 days')
INSERT INTO erased_predictions (provider, name)
SELECT p.provider, n.name FROM predictions p
 CROSS JOIN LATERAL (VALUES (p.external_id), ('key ' || p.key_sha256)) AS n (name)
 WHERE n.name IS NOT NULL AND p.job_id = ANY(%(ids)s::uuid[])
ON CONFLICT DO NOTHING
"""
# Deliveries that were not applied to their prediction: it is known by their external id, or by the key in their URL.
LIST_STRAY_DELIVERIES: Final = """
SELECT id FROM deliveries
 WHERE prediction_id IS NULL
   AND ((provider, external_id) IN (SELECT provider, name FROM erased_predictions)
        OR (provider, 'key ' || key_sha256) IN (SELECT provider, name FROM erased_predictions))
 ORDER BY id FOR UPDATE
"""

ADD_COUNTS: Final = """
UPDATE erasures SET removed = (SELECT coalesce(jsonb_object_agg(key, total), '{}') FROM (
           SELECT key, sum(value::bigint) AS total
             FROM (SELECT * FROM jsonb_each_text(removed) UNION ALL SELECT * FROM jsonb_each_text(%(counts)s::jsonb)) c
            GROUP BY key) s)
 WHERE id = %(id)s
"""
_COUNTED: Final = ("notifications", "renders", "outputs", "deliveries", "predictions", "jobs")


def erase_jobs(conn: Connection, erasure: Row, job_ids: Sequence[UUID], objects: int) -> None:
    """Delete jobs and all their rows, live or not; add their numbers and that of deleted objects to the report."""
    deliveries = [row["id"] for row in fetch_all(conn, LOCK_DELIVERIES, {"ids": job_ids})]
    conn.execute(retention.LOCK_ALL_JOBS, {"ids": job_ids})
    conn.execute(REMEMBER, {"ids": job_ids})
    counts = _drop(conn, job_ids, deliveries)
    add_counts(conn, erasure, {**counts, "objects": objects})


def delete_stray_deliveries(conn: Connection, erasure: Row) -> int:
    """Delete the deliveries that name an erased prediction, but were not applied to it; return their number."""
    conn.execute(LONG_TIMEOUT)
    found = [row["id"] for row in fetch_all(conn, LIST_STRAY_DELIVERIES, {})]
    if found:
        add_counts(conn, erasure, _drop(conn, [], found))
    return len(found)


def _drop(conn: Connection, job_ids: Sequence[UUID], deliveries: Sequence[UUID]) -> dict[str, int]:
    args = {"ids": job_ids, "deliveries": deliveries}
    counts = {name: conn.execute(sql, args).rowcount for name, sql in retention.DROP_JOBS.items()}
    return {name: counts[name] for name in _COUNTED}


def add_counts(conn: Connection, erasure: Row, counts: Mapping[str, int]) -> None:
    changed = {name: count for name, count in counts.items() if count}
    conn.execute(ADD_COUNTS, {"id": erasure["id"], "counts": Jsonb(changed)})


DROP_UPLOADS: Final = "DELETE FROM uploads WHERE owner = %(owner)s AND deleted_at IS NOT NULL"


@statement("""
UPDATE uploads SET deleted_at = moment()
 WHERE owner = %(owner)s AND deleted_at IS NULL AND owner IN (SELECT owner FROM erasures)
""")
def mark_uploads(conn: Connection, owner: str) -> None: ...


def drop_uploads(conn: Connection, erasure: Row, objects: int) -> None:
    """Delete the rows of uploads whose objects are deleted."""
    count = conn.execute(DROP_UPLOADS, {"owner": erasure["owner"]}).rowcount
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
    if fetch_one(conn, LOCK, {"id": erasure["id"]}) is None:
        return None
    counts = {name: conn.execute(sql, args).rowcount for name, sql in DROP_OTHERS.items()}
    add_counts(conn, erasure, {"projects": counts["projects"]})
    return fetch_one(conn, FINISH, {"id": erasure["id"]})


IS_ERASED: Final = """
SELECT name FROM erased_predictions WHERE provider = %(provider)s AND name = ANY(%(names)s::text[]) LIMIT 1
"""


def is_erased(conn: Connection, provider: str, external_id: str, key_sha256: str | None) -> bool:
    """Return True if an erasure deleted the prediction."""
    names = [external_id, f"key {key_sha256}"]
    return fetch_one(conn, IS_ERASED, {"provider": provider, "names": names}) is not None


@statement("UPDATE deliveries SET body = NULL WHERE id = %(delivery_id)s")
def purge_body(conn: Connection, delivery_id: UUID) -> None: ...
