"""
OpenAI's Images API: what is asked of POST /v1/images/generations, and what its answer holds; pure.

Sources: openai-openapi (openapi.yaml), openai-python (resources/images.py), read 2026-11. It answers with the pictures
themselves: gpt-image-* always as base64, dall-e-* as a URL that lives 60 minutes unless base64 is asked for.
"""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from moorage.errors import ProviderRefused, Unreadable
from moorage.exchange import Found, Order, Report
from providers import files

URL_LIFE: Final = timedelta(minutes=60)


def body(order: Order) -> dict[str, Any]:
    """
    Return the body of a request: the input, its model, and base64 instead of URLs where that is a choice.

    Raises:
        ProviderRefused: the input asks for an answer in pieces.
    """
    if order.input.get("stream"):
        raise ProviderRefused("OpenAI's pictures are taken whole: leave `stream` out of the input")
    asked = {**order.input, "model": order.model}
    if order.model.startswith("dall-e-"):
        asked.setdefault("response_format", "b64_json")
    return asked


def report(answer: dict[str, Any], external_id: str, model: str, allows: Callable[[str], str | None]) -> Report:
    """
    Return what an answer says: success, with a file for each item of `data`.

    Raises:
        Unreadable: `data` is no list.
    """
    data = answer.get("data")
    if not isinstance(data, list):
        raise Unreadable("data is missing or is no list")
    outputs = tuple(_files(data, allows))
    created_at = _moment_or_none(answer.get("created"))
    has_urls = any(output.url is not None for output in outputs)
    return Report(
        external_id=external_id,
        status="succeeded",
        raw_status="200",
        outputs=outputs,
        completed_at=created_at,
        expires_at=created_at + URL_LIFE if created_at and has_urls else None,
        model=model,
    )


def _files(data: list[Any], allows: Callable[[str], str | None]) -> Iterator[Found]:
    """Yield the file of each item; like every dialect's, more than 1,000 of them are no answer."""
    if len(data) > files.MAX_FILES:
        raise Unreadable(f"data names more than {files.MAX_FILES} files")
    for place, item in enumerate(data):
        if not isinstance(item, dict):
            continue
        encoded = item.get("b64_json")
        if isinstance(encoded, str) and encoded:
            yield files.of_base64(f"data[{place}].b64_json", encoded)
        else:
            yield from files.found(item.get("url"), f"data[{place}].url", allows)


def _moment_or_none(value: object) -> datetime | None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 10**11:
        return None
    return datetime.fromtimestamp(value, UTC)
