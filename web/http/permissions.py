"""Who calls: one object that every endpoint takes from its request, and what it may see."""

import enum
from dataclasses import dataclass
from typing import Final, cast

from starlette.requests import Request
from starlette.types import Scope

from web.http.problems import Problem

_SCOPE_KEY: Final = "moorage.caller"  # in the scope of a request


class Level(enum.IntEnum):
    """What a token allows, each what the ones before it do; every address of the table names the least it asks for."""

    OPEN = 0  # nobody asks for a token
    OWNER = 1  # a browser: one owner's rows, and nothing that is told of others
    APPLICATION = 2  # a server of the application: everybody's rows
    ADMIN = 3  # a person who runs moorage: tokens too


@dataclass(frozen=True, slots=True)
class Caller:
    """
    Whose token a request carries.

    Attributes:
        owner: with level OWNER, the only owner whose rows there are for this caller.
        until: when the token ends, in Unix seconds; None: it does not end by itself.
    """

    level: Level
    owner: str | None = None
    expires_unix: int | None = None

    def can_see(self, owner: str | None) -> bool:
        """Return whether a row of this owner is there for the caller; where not, answer as if there were none."""
        if self.level is Level.OWNER:
            return owner is not None and owner == self.owner
        return self.level >= Level.APPLICATION

    def resolve_owner(self, given: str | None) -> str | None:
        """
        Return the owner whose rows a list shows, None for all, from what the request says.

        Raises:
            Problem: 403, when it names another owner than the caller; whether that one exists makes no difference.
        """
        if self.level is not Level.OWNER:
            return given
        if given not in (None, self.owner):
            raise Problem(403, "this token is one owner's alone: name that owner, or none")
        return self.owner


ANONYMOUS: Final = Caller(Level.OPEN)


def set_caller(scope: Scope, caller: Caller) -> None:
    """Note in a request's scope who calls."""
    scope[_SCOPE_KEY] = caller


def get_caller(request: Request) -> Caller:
    """Return who calls."""
    return cast(Caller, request.scope[_SCOPE_KEY])


def require_level(caller: Caller, min_level: Level) -> None:
    """
    Return when the caller may use an address that asks for at least this level.

    Raises:
        Problem: 403, with the word for the token that is needed.
    """
    if caller.level < min_level:
        raise Problem(403, f"this address asks for a token of the level {min_level.name.lower()}")
