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
from moorage import webhook_keys
from moorage.failpoints import failpoint
from moorage.model import Registration, Wake
from moorage.provider_types import ListedPrediction
from providers.base import Provider
from tasks.jobs import create
from tasks.predictions import submit_outcome
from tasks.step import Deps

# unknown: to be registered and polled. live: to be polled. ended: over. lost: given up here, a dead letter tells why.
# foreign: unknown, and its webhook goes to somebody else.
Match = Literal["unknown", "live", "ended", "lost", "foreign"]
MATCHES: Final[tuple[Match, ...]] = ("unknown", "live", "ended", "lost", "foreign")
ACTOR: Final = "cli"


@dataclass(frozen=True, slots=True)
class ListedMatch:
    """A prediction of the provider's list, what is to be done about it, and its row where it has one."""

    listed: ListedPrediction
    match: Match
    prediction_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class RecoveredPage:
    """What one page came to: how many were registered, and the wakes to send."""

    registered: int
    wakes: list[Wake]


def scan(deps: Deps, provider: Provider, since: datetime, *, include_foreign: bool) -> Iterator[list[ListedMatch]]:
    """
    Yield what the provider made since then, a page at a time, with what is to be done; changes nothing.

    Args:
        foreign_too: whether those whose webhook does not point at our PUBLIC_URL count as ours.

    Raises:
        ProviderUnavailable, ProviderRefused: as `Provider.list_since` says.
    """
    public_url = None if include_foreign else deps.settings.public_url
    for page in provider.list_predictions(since):
        names = [listed.external_id for listed in page]
        rows = deps.database.run(partial(predictions.find_by_external_ids, provider=provider.name, external_ids=names))
        yield [_seen(listed, rows.get(listed.external_id), public_url) for listed in page]


def _seen(listed: ListedPrediction, row: Row | None, public_url: str | None) -> ListedMatch:
    if row is None:
        return ListedMatch(
            listed, "unknown" if public_url is None or is_own_webhook(listed.webhook, public_url) else "foreign"
        )
    if row["state"] in predictions.LIVE_STATES:
        return ListedMatch(listed, "live", row["id"])
    return ListedMatch(listed, "lost" if row["state"] == "lost" else "ended", row["id"])


def is_own_webhook(webhook: str | None, public_url: str) -> bool:
    """Return whether a webhook address lies below our PUBLIC_URL."""
    return webhook is not None and webhook.startswith(f"{public_url.rstrip('/')}/")


def count_matches(page: Sequence[ListedMatch]) -> Counter[Match]:
    """Return how many of a page have each fate."""
    return Counter(seen.match for seen in page)


def register_page(deps: Deps, provider: Provider, page: Sequence[ListedMatch], *, owner: str) -> RecoveredPage:
    """
    Register a page's unknown predictions and make them, and the live ones, due for a poll now.

    Each registration is a transaction of its own; one that somebody else made meanwhile is polled all the same.
    """
    registered, wakes = 0, []
    for seen in page:
        if seen.match == "unknown":
            is_new, found = _register(deps, provider, seen.listed, owner)
            registered += is_new
            wakes += found
    live = [seen.prediction_id for seen in page if seen.match == "live" and seen.prediction_id is not None]
    due = deps.database.run(lambda conn: predictions.make_due_by_id(conn, live)) if live else []
    wakes += [Wake("poll", prediction_id) for prediction_id in due]
    return RecoveredPage(registered, wakes)


def _register(deps: Deps, provider: Provider, listed: ListedPrediction, owner: str) -> tuple[bool, list[Wake]]:
    asked = Registration(
        provider=provider.name, external_id=listed.external_id, owner=owner, kind="mixed", model=listed.model
    )

    def add(conn: Connection) -> tuple[bool, list[UUID]]:
        ordered = submit_outcome.bind_external_id(
            conn, provider, webhook_keys.hash_key_in_url(listed.webhook), listed.external_id, actor=ACTOR
        )
        if ordered is not None:  # moorage submitted it and never heard of it: it has a job
            return False, predictions.make_due_by_id(conn, [ordered.id])
        _, prediction_id, is_new = create.insert_registration(conn, deps.settings, provider, asked, actor=ACTOR)
        return is_new, predictions.make_due_by_id(conn, [prediction_id])

    is_new, due = deps.database.run(add)
    failpoint("recover.after_commit")
    # After the registration's own commit: before it, ingest could not see the prediction.
    woken = deps.database.run(lambda conn: deliveries.make_unmatched_due(conn, provider.name, listed.external_id))
    return is_new, [*(Wake("poll", one) for one in due), *(Wake("ingest", one) for one in woken)]
