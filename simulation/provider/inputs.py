"""Fetches the pictures that an input names, as a provider does before it starts."""

import hashlib
import http.client
from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from simulation.provider.exchange import is_url
from simulation.provider.ledger import Ledger
from simulation.provider.prediction import Prediction

_NAMES: Final = (
    "image",
    "image_url",
    "images",
    "image_urls",
    "input_image",
    "start_image",
    "mask",
    "mask_url",
    "video",
)
_MAX_BYTES: Final = 100 * 2**20
_TIMEOUT_S: Final = 10.0


def fetch(prediction: Prediction, ledger: Ledger) -> str | None:
    """Fetch each file that the input names by address, write it into the ledger; return why the run must fail."""
    for name, url in _addresses(prediction):
        status, data = _get(url)
        ledger.add(
            "input",
            prediction=prediction.id,
            name=name,
            status=status,
            sha256=hashlib.sha256(data).hexdigest(),
            bytes=len(data),
        )
        if status != 200 or not data:
            return f"input.{name} could not be fetched: {status or 'no answer'}"
    return None


def _addresses(prediction: Prediction) -> Iterator[tuple[str, str]]:
    for name in _NAMES:
        value = prediction.input.get(name)
        for one in value if isinstance(value, list) else [value]:
            if is_url(one):
                yield name, one


def _get(url: str) -> tuple[int | None, bytes]:
    """Return status and body, (None, b"") when there is no answer."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
        answer = connection.getresponse()
        return answer.status, answer.read(_MAX_BYTES)
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()
