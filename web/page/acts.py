"""What an owner may do about a job from its card."""

from typing import Final
from uuid import UUID

from starlette.requests import Request

from db import gallery
from db.connect import Database
from tasks import cancel, retry
from web import desk, ids

# What the page says afterwards, by the word in its address.
TOLD: Final = {
    "cancel": "Cancelled. What its provider still makes is not kept.",
    "retry": "It is tried again.",
    "refused": "That is no longer possible: it has changed since.",
}
ACTOR: Final = "page"


async def carry_out(request: Request, owner: str, job_id: UUID, what: str) -> str:
    """
    Cancel an owner's job, or try it again; returns the word for what came of it.

    Raises:
        Problem: 404, there is no such job of this owner, or no such thing to do about it.
    """
    if what not in ("cancel", "retry"):
        raise ids.missing("address")
    at = desk.of(request)
    act = cancel.cancel if what == "cancel" else retry.retry

    def work(database: Database) -> str:
        if database.run(lambda conn: gallery.card(conn, owner, job_id)) is None:
            raise ids.missing("job")
        outcome = act(database, at.settings, job_id, ACTOR)
        at.relay.offer(*outcome.wakes)
        return "refused" if outcome.refused else what

    return await at.threads.run(work)
