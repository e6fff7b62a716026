"""Statements whose plan a connection keeps, because planning them takes longer than executing them."""

import itertools
import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
_NUMBERS: Final = itertools.count(1)
_PLACEHOLDER: Final = re.compile(r"%(?:\((\w+)\)[sb]|%)")


class Planned(str):
    """
    A statement that a transaction of `Database` prepares once a connection, except behind PgBouncer.

    PostgreSQL infers the type of each argument: it must be the same wherever the argument is used.
    """

    __slots__ = ()

    def build_prepared(self) -> tuple[str, str]:
        """Return PREPARE with a new name, and the text that calls it with the same arguments."""
        name, found = f"planned_{next(_NUMBERS)}", list(dict.fromkeys(filter(None, _PLACEHOLDER.findall(self))))
        text = _PLACEHOLDER.sub(lambda match: f"${found.index(match[1]) + 1}" if match[1] else "%", self)
        given = ", ".join(f"%({argument})s" for argument in found)
        return f"PREPARE {name} AS {text}", f"EXECUTE {name}({given})" if found else f"EXECUTE {name}"


def planned(function: F) -> F:
    """Have connections keep the plan of a function that is one statement (db/statements.py)."""
    vars(function)["sql"] = Planned(vars(function)["sql"])
    return function
