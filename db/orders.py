"""Orders: jobs that moorage submits itself, found again under the key they were sent with."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from psycopg.types.json import Jsonb

from db.connect import Connection, Row, one
from moorage.model import Entry, Wish

# An equal key that another transaction is about to commit is waited for: then this one inserts nothing and finds it.
ADD = """
WITH made AS (
    INSERT INTO jobs (id, owner, kind, mode, room_type, style, prompt, variants, project_id, scene, partial, chain,
                      placeholder, notify, idempotency_key, request_sha256, state, deadline_at, run_at)
    VALUES (%(id)s, %(owner)s, %(kind)s, %(mode)s, %(room_type)s, %(style)s, %(prompt)s, %(variants)s, %(project_id)s,
            %(scene)s, %(partial)s, %(chain)s, %(placeholder)s, %(notify)s, %(key)s, %(request_sha256)s, 'open',
            moment() + %(deadline)s, moment() + %(deadline)s)
    ON CONFLICT (owner, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
    RETURNING id
)
INSERT INTO events (subject, subject_id, job_id, to_state, reason, actor)
SELECT 'job', id, id, 'open', %(reason)s, %(actor)s FROM made
RETURNING subject_id AS id
"""


def add(conn: Connection, job_id: UUID, wish: Wish, *, notify: bool, actor: str) -> bool:
    """Insert an open job with its chain; False when its owner has a job under this key already."""
    args: dict[str, Any] = {
        "id": job_id,
        "owner": wish.owner,
        "kind": wish.kind,
        "mode": wish.mode,
        "room_type": wish.room_type,
        "style": wish.style,
        "prompt": wish.prompt,
        "variants": wish.variants,
        "project_id": wish.project_id,
        "scene": None if wish.scene is None else Jsonb(wish.scene),
        "partial": wish.partial,
        "chain": Jsonb([_entry(entry) for entry in wish.chain]),
        "placeholder": wish.placeholder,
        "notify": notify,
        "key": wish.idempotency_key,
        "request_sha256": wish.request_sha256,
        "deadline": timedelta(seconds=wish.deadline_seconds),
        "reason": f"a chain of {len(wish.chain)}",
        "actor": actor,
    }
    return one(conn, ADD, args) is not None


def _entry(entry: Entry) -> dict[str, Any]:
    return {"provider": entry.provider, "model": entry.model, "input": dict(entry.input), "seconds": entry.seconds}


FIND = """
SELECT j.id, j.state, j.request_sha256,
       (SELECT p.id FROM predictions p WHERE p.job_id = j.id ORDER BY p.seq LIMIT 1) AS prediction_id
  FROM jobs j WHERE j.owner = %(owner)s AND j.idempotency_key = %(key)s
"""


def find(conn: Connection, owner: str, key: str) -> Row | None:
    """Return id, state, first prediction and the request's hash of the job that an owner has under a key."""
    return one(conn, FIND, {"owner": owner, "key": key})
