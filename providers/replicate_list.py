"""What Replicate made since a time: its list, followed page by page on its own address alone."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlencode

from moorage.errors import DownloadRefused, MalformedPayload, ProviderRefused, ProviderUnavailable
from moorage.provider_types import ListedPrediction
from moorage.text import to_storable
from moorage.urls import parse_endpoint
from providers import json_fields
from providers.api_client import ApiClient

_LIST_BYTES: Final = 128 * 2**20  # a page holds 100 predictions, each with its output, which may be inline
_MAX_PAGES: Final = 2000  # 200,000 predictions


def iterate_pages(api: ApiClient, list_url: str, since: datetime) -> Iterator[list[ListedPrediction]]:
    """
    Go through GET {start}?created_after=, 100 predictions a page.

    Raises:
        ProviderUnavailable: no answer, 429 or 5xx, or what is no list.
        ProviderRefused: any other answer, too many pages, or a page elsewhere, where the token is not sent.
    """
    url = f"{list_url}?{urlencode({'created_after': since.astimezone(UTC).isoformat()})}"
    asked: set[str] = set()
    while url not in asked:
        if len(asked) == _MAX_PAGES:
            raise ProviderRefused(f"Replicate lists more than {_MAX_PAGES} pages: ask for a shorter time")
        asked.add(url)
        page, following = _page(api.get(url, max_bytes=_LIST_BYTES))
        yield page
        if following is None:
            return
        if not _continues(following, list_url):
            raise ProviderRefused("Replicate's list goes on at another address, where the token is not sent")
        url = following
    raise ProviderUnavailable("Replicate's list goes round in a circle")


def get_model(prediction: dict[str, Any]) -> str | None:
    """Return the model that a prediction object names."""
    model = prediction.get("model")
    return to_storable(model, 200) if isinstance(model, str) and model else None


def _page(body: bytes) -> tuple[list[ListedPrediction], str | None]:
    """Return the predictions of a page and where the next one is; raises ProviderUnavailable when it is none."""
    try:
        page = json_fields.parse_json_object(body)
        results, following = page.get("results"), page.get("next")
        if not isinstance(results, list) or not isinstance(following, str | None):
            raise MalformedPayload("results is no list, or next no address")
        return [_listed(item) for item in results], following or None
    except MalformedPayload as error:
        raise ProviderUnavailable(f"Replicate answered 200 with what is no list of predictions: {error}") from error


def _listed(item: object) -> ListedPrediction:
    if not isinstance(item, dict):
        raise MalformedPayload("an item of results is no prediction")
    webhook = item.get("webhook")
    return ListedPrediction(
        external_id=json_fields.require_id(item.get("id"), "id"),
        raw_status=json_fields.require_text(item.get("status"), "status"),
        webhook=webhook if isinstance(webhook, str) and webhook else None,
        model=get_model(item),
    )


def _continues(url: str, start: str) -> bool:
    """Return whether a page's address is the list's own, with another query: the token goes along."""
    try:
        is_same_host = parse_endpoint(url) == parse_endpoint(start)
    except DownloadRefused:
        return False
    return is_same_host and url.partition("?")[0] == start
