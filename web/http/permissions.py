"""The caller of a request, its level, and which owners' rows it can see."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

from moorage.owner_tokens import OwnerToken, Scope
from moorage.settings import Settings
from web.http.problems import Problem, not_found
from web.http.validation import invalid_field

OWNER_TOKEN_LIMITS: Final = {"jobs_per_hour": 120}  # where MOORAGE_OWNER_LIMITS names no other
MAX_PROJECTS: Final = 1000  # of an owner: with an owner token no more are created


class Level(enum.IntEnum):
    """What a token permits; each level reads what those before it do. Every operation names its minimum level."""

    OPEN = 0  # no token required
    OWNER = 1  # a browser: the rows of one owner
    APPLICATION = 2  # a server of the application: the rows of all owners
    VIEWER = 3  # somebody who watches: reads what an operator reads, and changes nothing
    ADMIN = 4  # an operator of moorage: API tokens too


@dataclass(frozen=True, slots=True)
class Caller:
    level: Level
    owner: str | None = None  # at level OWNER, the only owner whose rows are visible
    expires_unix: int | None = None  # of the token, in Unix seconds; None: it does not expire
    token: OwnerToken | None = None  # at level OWNER
    name: str | None = None  # of a token in `api_tokens`
    api_token_id: UUID | None = None
    client: Literal["api", "page", "console"] = "api"

    @property
    def actor(self) -> str:
        """Return who acts, for events."""
        return f"{self.client} {self.name}" if self.name else self.client

    def can_see(self, owner: str | None) -> bool:
        if self.level is Level.OWNER:
            return owner is not None and owner == self.owner
        return self.level >= Level.APPLICATION

    def has_scope(self, scope: Scope) -> bool:
        return self.token is None or scope in self.token.scopes

    def require_scope(self, scope: Scope) -> None:
        if not self.has_scope(scope):
            raise Problem(403, f"the owner token does not have the scope {scope!r}: request a token that has it")

    def require_visible(self, row: dict[str, Any] | None, noun: str) -> dict[str, Any]:
        """Return a row whose owner is visible. Raises Problem: 404 otherwise, exactly as if it did not exist."""
        if row is None or not self.can_see(row["owner"]):
            raise not_found(noun)
        return row

    def get_limits(self, settings: Settings) -> Mapping[str, int]:
        """Return the limits of owners that apply to the caller's requests."""
        return {**(OWNER_TOKEN_LIMITS if self.level is Level.OWNER else {}), **settings.owner_limits}

    def require_owner(self, requested: str | None) -> str:
        """Return the owner of a request. Raises Problem: 403 another one's, 422 an application named none."""
        owner = self.resolve_owner(requested)
        if owner is None:
            raise invalid_field("owner", "is required")
        return owner

    def resolve_owner(self, requested: str | None) -> str | None:
        """Return the owner to filter by, None for all. Raises Problem: 403, an owner token for another owner."""
        if self.level is not Level.OWNER:
            return requested
        if requested not in (None, self.owner):
            raise Problem(403, "the token is valid for one owner only: name that owner or omit it")
        return self.owner


def find_scope(method: str, path: str) -> Scope:
    """Return the scope that an owner token needs for an operation."""
    if method in ("GET", "HEAD", "OPTIONS") or path.endswith("/session"):
        return "read"
    if method == "DELETE" or path.endswith("/delete"):
        return "delete"
    return "upload" if path.endswith("/uploads") else "jobs"
