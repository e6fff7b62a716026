"""Ids in request paths."""

from uuid import UUID

from web.http.problems import Problem


def parse_id(text: str, noun: str) -> UUID:
    """Return the id in a path. Raises Problem: 404, also for a UUID in another than the canonical form."""
    try:
        parsed = UUID(text)
    except ValueError as error:
        raise not_found(noun) from error
    if str(parsed) != text.lower():
        raise not_found(noun)
    return parsed


def not_found(noun: str) -> Problem:
    return Problem(404, f"{noun} not found")
