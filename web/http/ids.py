"""Ids in paths: written as we write them, or they name nothing."""

from uuid import UUID

from web.http.problems import Problem


def parse_id(text: str, noun: str) -> UUID:
    """
    Return an id from a path.

    Args:
        what: the word for what it would name: "job".

    Raises:
        Problem: 404, for text in any other spelling too.
    """
    try:
        found = UUID(text)
    except ValueError as error:
        raise not_found(noun) from error
    if str(found) != text.lower():
        raise not_found(noun)
    return found


def not_found(noun: str) -> Problem:
    """Return the 404 of something that an address names and that is not there."""
    return Problem(404, f"there is no such {noun}")
