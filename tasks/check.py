"""One line of the doctor's: how something stands, and what to do about it."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Check:
    """How something stands; `advice` is empty where nothing is to be done. No secret is in either."""

    level: Literal["ok", "warn", "fail"]
    what: str
    advice: str = ""


def ok(what: str) -> Check:
    """Return that all is well."""
    return Check("ok", what)


def warn(what: str, advice: str) -> Check:
    """Return that it works, but not as well as it should."""
    return Check("warn", what, advice)


def fail(what: str, advice: str) -> Check:
    """Return that it cannot work like this."""
    return Check("fail", what, advice)
