"""Recover predictions from the provider's list: register unknown ones, poll those still awaited."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Final, Literal
from uuid import UUID

from db import predictions
from db.connection import Connection, current_time
from moorage import webhook_url_keys
from moorage.model import Prediction, Registration, Wake
from moorage.provider_types import ListedPrediction
from providers.base import Provider
from tasks.jobs import create
from tasks.predictions import submit_outcome
from tasks.step import Deps, SendWakes

# unknown: to be registered and polled. live: to be polled. ended: nothing to do. lost: has a dead letter.
# foreign: unknown, and its webhook URL is not below PUBLIC_URL.
Match = Literal["unknown", "live", "ended", "lost", "foreign"]
MATCHES: Final[tuple[Match, ...]] = ("unknown", "live", "ended", "lost", "foreign")
FIRST: Final = 10
SCAN_SECONDS: Final = 20.0  # of a request; the command has no limit


@dataclass(frozen=True, slots=True)
class ListedMatch:
    listed: ListedPrediction
    match: Match
    prediction_id: UUID | None = None


@dataclass
class RecoveryOverview:
    counts: Counter[Match] = field(default_factory=Counter)
    first: list[ListedMatch] = field(default_factory=list)  # of those to be registered or polled, at most FIRST

    @property
    def poll_count(self) -> int:
        return self.counts["unknown"] + self.counts["live"]

    def count(self, pages: Iterable[Sequence[ListedMatch]]) -> Iterator[Sequence[ListedMatch]]:
        """Yield the pages, and count what they list."""
        for page in pages:
            self.counts.update(item.match for item in page)
            to_poll = [item for item in page if item.match in ("unknown", "live")]
            self.first += to_poll[: FIRST - len(self.first)]
            yield page


def scan(deps: Deps, provider: Provider, since: datetime, *, include_foreign: bool) -> Iterator[list[ListedMatch]]:
    """
    Yield the provider's predictions since then, page by page, matched with rows; changes nothing.

    Args:
        include_foreign: treat predictions whose webhook URL is not below PUBLIC_URL as unknown.
    """
    public_url = None if include_foreign else deps.settings.public_url
    for page in provider.list_predictions(since):
        ids = [listed.external_id for listed in page]
        find = partial(predictions.find, providers=[provider.name] * len(page), external_ids=ids)
        found = {row.external_id: row for row in deps.database.run(find)}
        yield [_match(listed, found.get(listed.external_id), public_url) for listed in page]


class TimedScan:
    """As `scan`, of the last `seconds`; each iteration ends after SCAN_SECONDS, and `is_complete` is then False."""

    def __init__(self, deps: Deps, name: str, seconds: float, *, include_foreign: bool = False) -> None:
        self.is_complete = True
        self.since = deps.database.run(current_time) - timedelta(seconds=seconds)
        self._scan = partial(scan, deps, deps.providers[name], self.since, include_foreign=include_foreign)

    def __iter__(self) -> Iterator[list[ListedMatch]]:
        deadline = time.monotonic() + SCAN_SECONDS
        for page in self._scan():
            yield page
            if time.monotonic() > deadline:
                self.is_complete = False
                return


def _match(listed: ListedPrediction, row: Prediction | None, public_url: str | None) -> ListedMatch:
    if row is None:
        is_own = public_url is None or is_own_webhook(listed.webhook, public_url)
        return ListedMatch(listed, "unknown" if is_own else "foreign")
    ended: Match = "lost" if row.state == "lost" else "ended"
    return ListedMatch(listed, "live" if row.state in predictions.LIVE_STATES else ended, row.id)


def is_own_webhook(webhook: str | None, public_url: str) -> bool:
    return webhook is not None and webhook.startswith(f"{public_url.rstrip('/')}/")


def register_pages(
    deps: Deps,
    provider: Provider,
    pages: Iterable[Sequence[ListedMatch]],
    *,
    owner: str,
    actor: str,
    send_wakes: SendWakes,
) -> Counter[str]:
    """
    Register the unknown predictions of the pages; make them and the live ones due for a poll now. Wakes are sent page
    by page. Returns registered, polled, unsent_wakes.

    Each registration is its own transaction. A prediction that was registered meanwhile is polled, too.
    """
    result = Counter(registered=0, polled=0, unsent_wakes=0)
    for page in pages:
        wakes: list[Wake] = []
        for item in page:
            if item.match == "unknown":
                is_new, found = _register(deps, provider, item.listed, owner, actor)
                result["registered"] += is_new
                wakes += found
        live = [item.prediction_id for item in page if item.match == "live" and item.prediction_id is not None]
        due = deps.database.run(partial(predictions.make_due_by_id, ids=live)) if live else []
        wakes += [Wake("poll", prediction_id) for prediction_id in due]
        sent = send_wakes(wakes) if wakes else 0
        result.update(polled=sum(wake.step == "poll" for wake in wakes), unsent_wakes=len(wakes) - sent)
    return result


def _register(
    deps: Deps, provider: Provider, listed: ListedPrediction, owner: str, actor: str
) -> tuple[bool, list[Wake]]:
    registration = Registration(
        provider=provider.name, external_id=listed.external_id, owner=owner, kind="mixed", model=listed.model
    )

    def add(conn: Connection) -> tuple[bool, list[UUID]]:
        key_sha256 = webhook_url_keys.hash_key_in_url(listed.webhook)
        submitted = submit_outcome.bind_external_id(conn, provider, key_sha256, listed.external_id, actor=actor)
        if submitted is not None:  # by moorage, without a recorded response: it has a job
            return False, predictions.make_due_by_id(conn, [submitted.id])
        prediction_id, is_new = create.insert_registration(conn, deps.settings, provider, registration, actor=actor)
        return is_new, predictions.make_due_by_id(conn, [prediction_id])

    is_new, due = deps.database.run(add, point="recover")
    wakes = [Wake("poll", prediction_id) for prediction_id in due]
    # After the commit: ingest does not see an uncommitted prediction.
    return is_new, wakes + create.wake_unmatched(deps.database, provider.name, listed.external_id)
