"""/v1/owner-tokens and /v1/tokens: owner tokens for browsers, API tokens for applications and admins."""

import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from db import api_tokens
from db.connection import Row
from moorage import logs, owner_tokens
from moorage.owner_tokens import OwnerToken
from web.http import ids, json_body, problems, validation
from web.http.validation import Body, Name
from web.services import context

log = logs.get_logger(__name__)


class OwnerTokenCreate(Body):
    """The owner and the lifetime of a new owner token."""

    owner: Name
    seconds: Annotated[int, Field(ge=1, le=owner_tokens.MAX_LIFETIME_SECONDS)] | None = None


class TokenCreate(Body):
    """The name and the role of a new API token."""

    name: Name
    role: Literal["application", "admin"] = "application"


async def create_owner_token(request: Request) -> Response:
    """Create a token that expires and gives access to one owner's rows; it is not stored."""
    settings = context.get_context(request).settings
    body = validation.parse_body(await json_body.read_object(request), OwnerTokenCreate)
    key = owner_tokens.derive_signing_key(settings)
    if key is None:
        raise problems.unavailable("neither MOORAGE_OWNER_TOKEN_SECRET nor MOORAGE_API_TOKEN is set on the server")
    expires_unix = int(time.time() + (body.seconds or settings.owner_token_seconds))
    token = owner_tokens.encode(key, OwnerToken(body.owner, expires_unix))
    expires_at = datetime.fromtimestamp(expires_unix, UTC)
    return problems.json_response(201, {"token": token, "owner": body.owner, "expires_at": expires_at})


async def list_tokens(request: Request) -> Response:
    """Return all API tokens, without the secret part, which is not stored."""
    rows = await context.get_context(request).database.transaction(api_tokens.list_tokens)
    return problems.json_response(200, {"tokens": [_token_fields(row) for row in rows]})


async def create_token(request: Request) -> Response:
    """Create an API token; only this response contains it."""
    body = validation.parse_body(await json_body.read_object(request), TokenCreate)
    row, token = await context.get_context(request).database.transaction(
        lambda conn: api_tokens.create(conn, body.name, body.role)
    )
    log.info("token.created", token_id=row["id"], name=row["name"], role=row["role"])
    return problems.json_response(201, {**_token_fields(row), "token": token})


async def revoke_token(request: Request) -> Response:
    """Revoke an active API token."""
    token_id = ids.parse_id(request.path_params["token_id"], "token")
    row = await context.get_context(request).database.transaction(lambda conn: api_tokens.revoke(conn, token_id))
    if row is None:
        raise ids.not_found("token")
    log.info("token.revoked", token_id=row["id"], name=row["name"])
    return Response(status_code=204, headers=problems.NO_STORE)


def _token_fields(row: Row) -> dict[str, Any]:
    return {"token_id": row["id"], **{name: row[name] for name in ("name", "role", "created_at", "revoked_at")}}
