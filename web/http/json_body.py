"""Reads bodies of requests, bounded in bytes and time; JSON objects as UTF-8, integers exact, no duplicate names."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, Final, Generic, TypeVar

from fastapi import Depends
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request

from moorage.text import to_storable
from web.http import validation
from web.http.problems import Problem

B = TypeVar("B", bound=BaseModel)
T = TypeVar("T")

MAX_BYTES: Final = 2**20
LARGE_BYTES: Final = 2**16
MAX_DEPTH: Final = 64
MAX_EXPONENT: Final = 1000  # of one number; of all numbers of a body together MAX_BYTES
READ_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 15.0  # of files
TOTAL_SECONDS: Final = 300.0
_executor: Final = ThreadPoolExecutor(1, "json")


async def read_bytes(request: Request) -> bytes:
    """Return the body of a JSON request; raises as `read_typed_bytes` does."""
    return await read_typed_bytes(request, "application/json")


async def read_typed_bytes(request: Request, media_type: str) -> bytes:
    """Return the body of a request. Raises Problem: 400 incomplete, 408, 413 or 415."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != media_type:
        raise Problem(415, f"Content-Type must be {media_type}")
    body = bytearray()
    async with aclosing(read_chunks(request, READ_SECONDS, READ_SECONDS)) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > MAX_BYTES:
                raise Problem(413, f"the body is larger than {MAX_BYTES} bytes")
    return bytes(body)


async def read_chunks(
    request: Request, idle_seconds: float = IDLE_SECONDS, total_seconds: float = TOTAL_SECONDS
) -> AsyncGenerator[bytes, None]:
    """Yield a request's body as it arrives. Raises Problem: 400 incomplete, 408 too slow."""
    stream = request.stream()
    try:
        async with asyncio.timeout(total_seconds):
            while True:
                async with asyncio.timeout(idle_seconds):
                    chunk = await anext(stream, None)
                if chunk is None:
                    return
                yield chunk
    except TimeoutError as error:
        limits = f"{total_seconds:g} s, or nothing for {idle_seconds:g} s"
        raise Problem(408, f"the body did not arrive within {limits}: retry") from error
    except ClientDisconnect as error:
        raise Problem(400, "the request ended before its body: retry") from error


BodyBytes = Annotated[bytes, Depends(read_bytes)]


class JsonBody(Generic[B]):
    """Dependency: a request's body as a model; raises as `read_bytes`, `parse_object` and `parse_body` do."""

    def __init__(self, model: type[B]) -> None:
        self.model: Final = model

    async def __call__(self, body: BodyBytes) -> B:
        return await run_apart(len(body) > LARGE_BYTES, lambda: self._parse(body))

    def _parse(self, body: bytes) -> B:
        fields = parse_object(body)
        parsed = validation.parse_body(fields, self.model)
        check_depth(fields, "")
        return parsed


if TYPE_CHECKING:
    Json = Annotated[B, JsonBody]
else:

    class Json:
        """The type of a parameter: `Json[Model]` is the request's body, as `JsonBody` reads it."""

        def __class_getitem__(cls, model: type[B]) -> Any:
            return Annotated[model, Depends(JsonBody(model))]


async def read_object(request: Request) -> dict[str, Any]:
    """Return the JSON object in a request's body; raises as `read_bytes` and `parse_object` do."""
    body = await read_bytes(request)
    return await run_apart(len(body) > LARGE_BYTES, lambda: parse_object(body))


async def run_apart(is_large: bool, work: Callable[[], T]) -> T:
    """Return the result of `work`; with a large body in a thread: the event loop also receives webhooks."""
    return await asyncio.get_running_loop().run_in_executor(_executor, work) if is_large else work()


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body. Raises Problem: 400 not JSON, 422 not an object."""
    value = _parse(body)
    if not isinstance(value, dict):
        message = f"is {type(value).__name__}: send a JSON object"
        raise Problem(422, f"the body {message}", errors=[{"field": "", "message": message}])
    return value


def check_depth(value: Any, field: str) -> None:
    if validation.is_nested_deeper(value, MAX_DEPTH):
        raise validation.invalid_field(field, f"is nested more than {MAX_DEPTH} levels deep")


def _parse(body: bytes) -> Any:
    try:
        text, parse_float = body.decode("utf-8"), _limit_exponents()
        return json.loads(
            text, object_pairs_hook=_build_object, parse_float=parse_float, parse_constant=_reject_constant
        )
    except UnicodeDecodeError as error:
        raise Problem(400, f"the body is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise Problem(400, f"the body is not JSON: {error}") from error
    except (ValueError, RecursionError) as error:  # a number of more than 4,300 digits, or too many brackets
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else to_storable(str(error), 200)
        raise Problem(400, f"the body cannot be parsed: {reason}") from error


def _limit_exponents() -> Callable[[str], float]:
    """Return a parser of one body's fractions. jsonb writes exponents as zeros, so that 7 kB could become 100 MB."""
    total = 0

    def parse(number: str) -> float:
        nonlocal total
        zeros = abs(int(number.lower().partition("e")[2] or 0))
        total += zeros
        if zeros > MAX_EXPONENT or total > MAX_BYTES:
            message = f"has numbers that are too long without exponent, such as {number[:40]}: send them as text"
            raise validation.invalid_field("", message)
        return float(number)

    return parse


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object. Duplicate names are an error, since parsers disagree on which value counts."""
    value = dict(pairs)
    if len(value) < len(pairs):
        duplicate = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"duplicate name in an object: {to_storable(duplicate, 60)!r}")
    return value


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
