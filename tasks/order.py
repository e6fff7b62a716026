"""Orders: a job that moorage submits itself, and its first prediction, committed before anything is sent."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import psycopg

from db import orders, projects, submits
from db.connect import Connection, Database
from moorage import ids
from moorage.errors import Refused
from moorage.failpoints import failpoint
from moorage.model import Step, Wake, Wish
from moorage.settings import Settings
from providers.base import Provider
from tasks.register import NotTheirs


@dataclass(frozen=True, slots=True)
class Ordered:
    """The job of an order; `is_new` is False when it was known under the order's key already."""

    job_id: UUID
    prediction_id: UUID
    state: str
    is_new: bool
    wakes: list[Wake]


class KeyTaken(Refused):
    """The owner has another order under this key."""

    def __init__(self, job_id: UUID) -> None:
        super().__init__(f"this Idempotency-Key was sent with another body: it made job {job_id}", status=409)


def order(database: Database, settings: Settings, providers: Mapping[str, Provider], wish: Wish) -> Ordered:
    """
    Insert a job with its first prediction, planned and due now, unless it is known under its key.

    Raises:
        KeyTaken: another order has its key.
        NotTheirs: its project is another owner's.
    """
    made = database.run(lambda conn: insert(conn, settings, providers, wish))
    failpoint("order.after_commit")
    return made


def insert(conn: Connection, settings: Settings, providers: Mapping[str, Provider], wish: Wish) -> Ordered:
    """Insert an order in the caller's transaction, as `order` does."""
    known = find(conn, wish)
    if known is not None:
        return known
    job_id = ids.new()
    is_new = False
    with conn.transaction() as savepoint:  # an equal order may commit meanwhile: then nothing of this one stays
        if wish.project_id is not None and not projects.ensure(conn, wish.project_id, wish.owner):
            raise NotTheirs
        is_new = orders.add(conn, job_id, wish, notify=settings.notify_url is not None, actor="api")
        if not is_new:
            raise psycopg.Rollback(savepoint)
    if not is_new:
        return insert(conn, settings, providers, wish)
    first = wish.chain[0]
    prediction_id = submits.plan(conn, job_id, 0, first, reason=None, actor="api")
    step: Step = "generate" if providers[first.provider].synchronous else "submit"
    return Ordered(job_id, prediction_id, "open", is_new=True, wakes=[Wake(step, prediction_id)])


def find(conn: Connection, wish: Wish) -> Ordered | None:
    """
    Return the job that an equal order made; None when there is none, or the order has no key.

    Raises:
        KeyTaken: another order has its key.
    """
    row = orders.find(conn, wish.owner, wish.idempotency_key) if wish.idempotency_key else None
    if row is None:
        return None
    if row["request_sha256"] != wish.request_sha256:
        raise KeyTaken(row["id"])
    return Ordered(row["id"], row["prediction_id"], row["state"], is_new=False, wakes=[])
