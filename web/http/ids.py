"""Ids in request paths."""

from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import BeforeValidator

from web.http.problems import Problem

_NOUNS: Final = {"output": "file"}


def _check_canonical(text: Any) -> Any:
    """Accept a UUID in its canonical form only: otherwise a row had several URLs."""
    if str(UUID(text)) != text.lower():
        raise ValueError("is not in the canonical form")
    return text


PathId = Annotated[UUID, BeforeValidator(_check_canonical)]


def not_found(noun: str) -> Problem:
    return Problem(404, f"{noun} not found")


def invalid_parameter(name: str) -> Problem:
    """Return the problem of an invalid path parameter: the same as for an unknown id."""
    noun = name.removesuffix("_id").replace("_", " ")
    return not_found(_NOUNS.get(noun, noun))
