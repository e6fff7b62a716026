"""/v1/owner-tokens and /v1/tokens: tokens of browsers, applications and admins; /v1/session: one in a cookie."""

import time
from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import Response
from pydantic import Field
from starlette.requests import Request

from db import api_tokens, owner_token_revocations
from db.api_tokens import Role
from moorage import logs, owner_tokens
from moorage.owner_tokens import OwnerToken, Scope, sort_scopes
from web.api.responses import NewToken, SessionView, Token, TokenPage
from web.api.responses import OwnerToken as OwnerTokenView
from web.http import problems
from web.http.json_body import Json
from web.http.permissions import Level
from web.http.problems import Problem
from web.http.query import Filters, SessionQuery, TokenOwnerQuery
from web.http.router import Router
from web.http.validation import Body, Name, PathId
from web.services.authentication import set_token
from web.services.context import AdminOnly, AnyCaller, ApplicationOnly, Context, ViewerOnly

log = logs.get_logger(__name__)

router: Final = Router(tags=["tokens"])


class OwnerTokenCreate(Body):
    """The owner, the scopes and the lifetime of a new owner token; the scope `read` is always included."""

    owner: Name
    scopes: list[Scope] | None = None
    seconds: Annotated[int, Field(ge=1, le=owner_tokens.MAX_LIFETIME_SECONDS)] | None = None


class TokenCreate(Body):
    """The name and the role of a new API token."""

    name: Name
    role: Role = "application"


@router.post("/owner-tokens", status_code=201, response_description="created", dependencies=[ApplicationOnly])
async def create_owner_token(ctx: Context, body: Json[OwnerTokenCreate]) -> OwnerTokenView:
    """Create a token that expires and gives access to one owner's rows, within its scopes; it is not stored."""
    key = owner_tokens.derive_signing_key(ctx.settings)
    if key is None:
        raise problems.unavailable("neither MOORAGE_OWNER_TOKEN_SECRET nor MOORAGE_API_TOKEN is set on the server")
    expires_unix = int(time.time() + (body.seconds or ctx.settings.owner_token_seconds))
    token = OwnerToken(body.owner, expires_unix, frozenset({"read", *(body.scopes or ())}))
    fields = {"token_id": token.token_id, "owner": token.owner, "scopes": sort_scopes(token.scopes)}
    expires_at = datetime.fromtimestamp(expires_unix, UTC)
    return OwnerTokenView.model_validate({**fields, "token": owner_tokens.encode(key, token), "expires_at": expires_at})


@router.delete("/owner-tokens", status_code=204, response_description="revoked", dependencies=[ApplicationOnly])
async def revoke_owner_tokens(ctx: Context, params: Filters[TokenOwnerQuery]) -> None:
    """Revoke all tokens of an owner that were issued until now."""
    subject, at = owner_tokens.owner_subject(params.owner), datetime.now(UTC)
    await ctx.database.transaction(lambda conn: owner_token_revocations.add(conn, subject, at))
    log.info("owner_tokens.revoked")


@router.delete(
    "/owner-tokens/{token_id}", status_code=204, response_description="revoked", dependencies=[ApplicationOnly]
)
async def revoke_owner_token(token_id: PathId, ctx: Context) -> None:
    """Revoke one owner token by its id; whether it exists is not known."""
    subject, at = owner_tokens.token_subject(token_id), datetime.now(UTC)
    await ctx.database.transaction(lambda conn: owner_token_revocations.add(conn, subject, at))
    log.info("owner_token.revoked", token_id=token_id)


@router.get("/tokens", response_description="all tokens", dependencies=[ViewerOnly])
async def list_tokens(ctx: Context) -> TokenPage:
    """Return all API tokens, without the secret part, which is not stored."""
    rows = await ctx.database.transaction(api_tokens.list_tokens)
    return TokenPage(tokens=[Token.model_validate({"token_id": row["id"], **row}) for row in rows])


@router.post("/tokens", status_code=201, response_description="created", dependencies=[AdminOnly])
async def create_token(ctx: Context, body: Json[TokenCreate]) -> NewToken:
    """Create an API token; only this response contains it."""
    row, token = await ctx.database.transaction(lambda conn: api_tokens.create(conn, body.name, body.role))
    log.info("token.created", token_id=row["id"], name=row["name"], role=row["role"])
    return NewToken.model_validate({"token_id": row["id"], **row, "token": token})


@router.delete("/tokens/{token_id}", status_code=204, response_description="revoked", dependencies=[AdminOnly])
async def revoke_token(token_id: PathId, ctx: Context) -> None:
    """Revoke an active API token."""
    row = await ctx.database.transaction(lambda conn: api_tokens.revoke(conn, token_id))
    if row is None:
        raise problems.not_found("token")
    log.info("token.revoked", token_id=row["id"], name=row["name"])


@router.get("/session", tags=["session"], response_description="the caller")
async def get_session(caller: AnyCaller) -> SessionView:
    """Return the caller: the level, the owner, the scopes and the expiry of its token."""
    expires_at = None if caller.expires_unix is None else datetime.fromtimestamp(caller.expires_unix, UTC)
    scopes = sort_scopes(caller.token.scopes) if caller.token else None
    fields = {"level": caller.level.name.lower(), "owner": caller.owner, "scopes": scopes, "expires_at": expires_at}
    return SessionView.model_validate(fields)


@router.post("/session", tags=["session"], status_code=204, response_description="the cookie is set")
async def create_session(
    request: Request, response: Response, caller: AnyCaller, ctx: Context, params: Filters[SessionQuery]
) -> None:
    """Set the session cookie to the owner token in the Authorization header; 409: the cookie is of another owner."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if caller.level is not Level.OWNER or caller.expires_unix is None or scheme.lower() != "bearer":
        raise Problem(403, "a session requires an owner token: send one as Authorization: Bearer TOKEN")
    present = await ctx.authenticator.find_session(request.scope)
    if present is not None and present.owner != caller.owner and not params.replace:
        raise Problem(409, f"this browser has a session of {present.owner}: send ?replace=true to replace it")
    set_token(response, ctx.settings, token.strip(), max(1, caller.expires_unix - int(time.time())))


@router.delete("/session", tags=["session"], status_code=204, response_description="the cookie is removed")
async def delete_session(response: Response, ctx: Context) -> None:
    """Remove the session cookie; the token in it remains valid until it expires."""
    set_token(response, ctx.settings, "", 0)
