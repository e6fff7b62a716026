"""What a model's input may hold: text and numbers that can be stored and sent, nested within reason."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from moorage.text import is_storable, storable

MAX_DEPTH: Final = 32
MAX_VALUES: Final = 10_000  # of one input: a model takes dozens, and each is looked at several times
MAX_CHAIN_BYTES: Final = 2**21  # of all entries' inputs together, as JSON
_FIELD_CHARS: Final = 200


def problems_of(value: Any, field: str, depth: int = 0) -> Iterator[dict[str, str]]:
    """Yield what is wrong with a value of JSON, each with the place where it stands."""
    if depth > MAX_DEPTH:
        yield wrong(field, f"is nested more than {MAX_DEPTH} deep")
    elif isinstance(value, str) and not is_storable(value):
        yield wrong(field, "holds a NUL character or a lone surrogate, which cannot be stored")
    elif isinstance(value, float) and not math.isfinite(value):
        yield wrong(field, "is larger than a number can be")
    elif isinstance(value, dict):
        for name, item in value.items():
            if is_storable(name):
                yield from problems_of(item, f"{field}.{name}", depth + 1)
            else:
                yield wrong(field, f"has a name that cannot be stored: {storable(name, 60)}")
    elif isinstance(value, list):
        for n, item in enumerate(value):
            yield from problems_of(item, f"{field}[{n}]", depth + 1)


def is_large(value: Any) -> bool:
    """Return whether a value of JSON holds more than MAX_VALUES values, itself counted."""
    level, seen = [value], 0
    while level:
        seen += len(level)
        if seen > MAX_VALUES:
            return True
        level = [inner for one in level for inner in _inside(one)]
    return False


def is_deep(value: Any, most: int) -> bool:
    """Return whether brackets stand in brackets more than `most` deep; whoever walks down by calls would fail."""
    level = [value]
    for _ in range(most):
        level = [inner for one in level for inner in _inside(one) if isinstance(inner, dict | list)]
    return bool(level)


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def size_bytes(inputs: Sequence[Mapping[str, Any]]) -> int:
    """Return how much inputs take as JSON."""
    return sum(len(json.dumps(dict(value))) for value in inputs)


def wrong(field: str, message: str) -> dict[str, str]:
    """Return what is wrong with a field whose name may hold anything."""
    return {"field": storable(field, _FIELD_CHARS), "message": storable(message, 500)}
