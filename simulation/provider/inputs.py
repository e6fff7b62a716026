"""Downloads of the input files that a prediction names, as a provider does before it starts."""

import hashlib
import http.client
from collections.abc import Mapping
from typing import Any, Final

from simulation.provider.http_types import is_url, open_connection
from simulation.provider.ledger import Ledger

_FIELDS: Final = (
    "image", "image_url", "images", "image_urls", "input_image", "start_image", "mask", "mask_url", "video",
)  # fmt: skip
_MAX_BYTES: Final = 100 * 2**20
_TIMEOUT_S: Final = 10.0


def fetch_inputs(prediction_id: str, input_: Mapping[str, Any], ledger: Ledger) -> str | None:
    """Download each input file that is given as a URL and record it; return the error that must fail the prediction."""
    values = [(name, input_.get(name)) for name in _FIELDS]
    items = [(name, item) for name, value in values for item in (value if isinstance(value, list) else [value])]
    for name, url in items:
        if not is_url(url):
            continue
        status, data = _download(url)
        digest = hashlib.sha256(data).hexdigest()
        ledger.add("input", prediction=prediction_id, name=name, status=status, sha256=digest, bytes=len(data))
        if status != 200 or not data:
            return f"input.{name} could not be fetched: {status or 'no response'}"
    return None


def _download(url: str) -> tuple[int | None, bytes]:
    """Return status and body; (None, b"") without a response."""
    connection, target = open_connection(url, _TIMEOUT_S)
    try:
        connection.request("GET", target)
        response = connection.getresponse()
        return response.status, response.read(_MAX_BYTES)
    except (OSError, http.client.HTTPException):
        return None, b""
    finally:
        connection.close()
