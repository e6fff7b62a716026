"""Dependencies of the endpoints: the application context, and the caller at a minimum level."""

from typing import Annotated, Final

from fastapi import Depends
from starlette.requests import Request

from web.http.permissions import Caller, Level, find_scope
from web.http.problems import Problem
from web.services.context import AppContext


async def get_context(request: Request) -> AppContext:
    context: AppContext = request.app.state.context
    return context


Context = Annotated[AppContext, Depends(get_context)]


async def authenticate(request: Request, ctx: Context) -> Caller:
    """
    Return the caller; raises as `Authenticator.authenticate` does.

    Raises Problem: 403, its token does not have the scope, or a viewer, who changes nothing.
    """
    caller = await ctx.authenticator.authenticate(request.scope)
    # The template, not the path: a project may have the id "session".
    caller.require_scope(find_scope(request.method, request.scope["route"].path_format))
    if caller.level is Level.VIEWER and request.method not in ("GET", "HEAD"):
        raise Problem(403, "a token of level viewer only reads: use one of level admin")
    return caller


AnyCaller = Annotated[Caller, Depends(authenticate)]


class RequireLevel:
    """Dependency: the caller, if its token has at least this level. Raises Problem: 403."""

    def __init__(self, level: Level) -> None:
        self.level: Final = level

    async def __call__(self, caller: AnyCaller) -> Caller:
        if caller.level < self.level:
            raise Problem(403, f"a token of level {self.level.name.lower()} is required")
        return caller


ApplicationOnly: Final = Depends(RequireLevel(Level.APPLICATION))
ViewerOnly: Final = Depends(RequireLevel(Level.VIEWER))
AdminOnly: Final = Depends(RequireLevel(Level.ADMIN))
