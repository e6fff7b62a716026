"""Recover: what a provider made and moorage does not know, or still waits for, by the provider's own list."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final, Literal
from uuid import UUID

from db import deliveries, predictions
from db.connection import Connection, Row
from moorage.failpoints import failpoint
from moorage.model import Registration, Wake
from moorage.provider_types import Listed
from providers.base import Provider
from tasks.jobs import create
from tasks.predictions import submit_outcome, submit_recovery
from tasks.step import Deps

# unknown: to be registered and polled. live: to be polled. ended: over. lost: given up here, a dead letter tells why.
# foreign: unknown, and its webhook goes to somebody else.
Fate = Literal["unknown", "live", "ended", "lost", "foreign"]
FATES: Final[tuple[Fate, ...]] = ("unknown", "live", "ended", "lost", "foreign")
ACTOR: Final = "cli"


@dataclass(frozen=True, slots=True)
class Seen:
    """A prediction of the provider's list, what is to be done about it, and its row where it has one."""

    listed: Listed
    fate: Fate
    prediction_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """What one page came to: how many were registered, and the wakes to send."""

    registered: int
    wakes: list[Wake]


def look(deps: Deps, provider: Provider, since: datetime, *, foreign_too: bool) -> Iterator[list[Seen]]:
    """
    Yield what the provider made since then, a page at a time, with what is to be done; changes nothing.

    Args:
        foreign_too: whether those whose webhook does not point at our PUBLIC_URL count as ours.

    Raises:
        ProviderUnavailable, ProviderRefused: as `Provider.list_since` says.
    """
    public_url = None if foreign_too else deps.settings.public_url
    for page in provider.list_since(since):
        names = [listed.external_id for listed in page]
        rows = deps.database.run(partial(predictions.known, provider=provider.name, external_ids=names))
        yield [_seen(listed, rows.get(listed.external_id), public_url) for listed in page]


def _seen(listed: Listed, row: Row | None, public_url: str | None) -> Seen:
    if row is None:
        return Seen(listed, "unknown" if public_url is None or is_ours(listed.webhook, public_url) else "foreign")
    if row["state"] in predictions.LIVE:
        return Seen(listed, "live", row["id"])
    return Seen(listed, "lost" if row["state"] == "lost" else "ended", row["id"])


def is_ours(webhook: str | None, public_url: str) -> bool:
    """Return whether a webhook address lies below our PUBLIC_URL."""
    return webhook is not None and webhook.startswith(f"{public_url.rstrip('/')}/")


def count(page: Sequence[Seen]) -> Counter[Fate]:
    """Return how many of a page have each fate."""
    return Counter(seen.fate for seen in page)


def take(deps: Deps, provider: Provider, page: Sequence[Seen], *, owner: str) -> Taken:
    """
    Register a page's unknown predictions and make them, and the live ones, due for a poll now.

    Each registration is a transaction of its own; one that somebody else made meanwhile is polled all the same.
    """
    registered, wakes = 0, []
    for seen in page:
        if seen.fate == "unknown":
            is_new, found = _register(deps, provider, seen.listed, owner)
            registered += is_new
            wakes += found
    live = [seen.prediction_id for seen in page if seen.fate == "live" and seen.prediction_id is not None]
    due = deps.database.run(lambda conn: predictions.poll_now(conn, live)) if live else []
    wakes += [Wake("poll", prediction_id) for prediction_id in due]
    return Taken(registered, wakes)


def _register(deps: Deps, provider: Provider, listed: Listed, owner: str) -> tuple[bool, list[Wake]]:
    asked = Registration(
        provider=provider.name, external_id=listed.external_id, owner=owner, kind="mixed", model=listed.model
    )

    def add(conn: Connection) -> tuple[bool, list[UUID]]:
        ordered = submit_outcome.bind(
            conn, provider, submit_recovery.key_sha256(listed.webhook), listed.external_id, actor=ACTOR
        )
        if ordered is not None:  # moorage submitted it and never heard of it: it has a job
            return False, predictions.poll_now(conn, [ordered.id])
        _, prediction_id, is_new = create.insert(conn, deps.settings, provider, asked, actor=ACTOR)
        return is_new, predictions.poll_now(conn, [prediction_id])

    is_new, due = deps.database.run(add)
    failpoint("recover.after_commit")
    # After the registration's own commit: before it, ingest could not see the prediction.
    woken = deps.database.run(lambda conn: deliveries.match(conn, provider.name, listed.external_id))
    return is_new, [*(Wake("poll", one) for one in due), *(Wake("ingest", one) for one in woken)]
