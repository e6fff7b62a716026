"""Replicate's list of predictions, page by page, restricted to the URL of the list itself."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlencode

from moorage.errors import DownloadRefused, MalformedPayload, ProviderRefused, ProviderUnavailable
from moorage.provider_types import ListedPrediction
from moorage.urls import parse_endpoint
from providers import json_fields
from providers.api_client import ApiClient

_LIST_BYTES: Final = 128 * 2**20  # a page holds 100 predictions, each with its output, which may be inline
_MAX_PAGES: Final = 2000  # 200,000 predictions


def iterate_pages(api: ApiClient, list_url: str, since: datetime) -> Iterator[list[ListedPrediction]]:
    """Yield the pages of GET {list_url}?created_after=, 100 predictions each; raises as `Provider.list_predictions`."""
    url = f"{list_url}?{urlencode({'created_after': since.astimezone(UTC).isoformat()})}"
    visited: set[str] = set()
    while url not in visited:
        if len(visited) == _MAX_PAGES:
            raise ProviderRefused(f"Replicate lists more than {_MAX_PAGES} pages: choose a later start")
        visited.add(url)
        page, next_url = _parse_page(api.get(url, max_bytes=_LIST_BYTES))
        yield page
        if next_url is None:
            return
        if not _is_same_list(next_url, list_url):
            raise ProviderRefused("Replicate's list continues at another address, where the token is not sent")
        url = next_url
    raise ProviderUnavailable("Replicate's list has a circular page link")


def _parse_page(body: bytes) -> tuple[list[ListedPrediction], str | None]:
    """Return the predictions of a page and the URL of the next one; raises ProviderUnavailable if malformed."""
    with json_fields.translate_malformed(ProviderUnavailable, "Replicate returned no list of predictions"):
        page = json_fields.parse_json_object(body)
        results, next_url = page.get("results"), page.get("next")
        if not isinstance(results, list) or not isinstance(next_url, str | None):
            raise MalformedPayload("results is not a list, or next not a URL")
        return [_parse_prediction(item) for item in results], next_url or None


def _parse_prediction(item: object) -> ListedPrediction:
    if not isinstance(item, dict):
        raise MalformedPayload("an item of results is not a prediction")
    webhook = item.get("webhook")
    return ListedPrediction(
        external_id=json_fields.require_id(item.get("id"), "id"),
        raw_status=json_fields.require_text(item.get("status"), "status"),
        webhook=webhook if isinstance(webhook, str) and webhook else None,
        model=json_fields.optional_model(item),
    )


def _is_same_list(url: str, start: str) -> bool:
    """Return True if the URL differs from the list only in its query: the token is sent to it."""
    try:
        is_same_host = parse_endpoint(url) == parse_endpoint(start)
    except DownloadRefused:
        return False
    return is_same_host and url.partition("?")[0] == start
