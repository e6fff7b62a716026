"""Reads JSON objects from requests: bounded in bytes and time, UTF-8, integers exact."""

import asyncio
import json
from collections import Counter
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request

from moorage.text import to_storable
from web.http.problems import Problem

MAX_BYTES: Final = 2**20
READ_SECONDS: Final = 5.0


async def read_object(request: Request) -> dict[str, Any]:
    """
    Return the JSON object in a request's body.

    Raises:
        Problem: 400 not JSON or not whole, 408 too slow, 413 above 1 MiB, 415 another media type, 422 no object.
    """
    return (await read_object_and_text(request))[0]


async def read_object_and_text(request: Request) -> tuple[dict[str, Any], str]:
    """Return the JSON object in a request's body and its text, to the last digit; raises as `read_object` does."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Problem(415, "send the body as Content-Type: application/json")
    body = await _collect(request)
    return _object_in(body), body.decode("utf-8")


def parse_object(text: str) -> dict[str, Any]:
    """Return the JSON object in a text. Raises Problem: 400 not JSON, 422 no object."""
    return _object_in(text.encode())


def _object_in(body: bytes) -> dict[str, Any]:
    value = _parse(body)
    if not isinstance(value, dict):
        message = f"is {type(value).__name__}: write a JSON object"
        raise Problem(422, f"the body {message}", errors=[{"field": "", "message": message}])
    return value


async def _collect(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BYTES:
                    raise Problem(413, f"the body is larger than {MAX_BYTES} bytes")
    except TimeoutError as error:
        raise Problem(408, f"the body did not arrive within {READ_SECONDS:.0f} s: send it again") from error
    except ClientDisconnect as error:
        raise Problem(400, "the request ended before its body did: send it again") from error
    return bytes(body)


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise Problem(400, f"the body is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise Problem(400, f"the body is not JSON: {error}") from error
    except (ValueError, RecursionError) as error:  # a number of more than 4,300 digits, or too many brackets
        raise Problem(400, f"the body is JSON that cannot be read: {to_storable(str(error), 200)}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object; of a name that stands twice, readers would take different values."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"{to_storable(twice, 60)!r} stands twice in one object")
    return made


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")
