"""/v1/owner-tokens and /v1/tokens: tokens for browsers, made by applications, and for applications, made by admins."""

import time
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from db import api_tokens
from moorage import logs, owner_tokens
from moorage.owner_tokens import OwnerToken
from web.http import ids, json_body, problems, validation
from web.http.problems import unavailable
from web.http.validation import Name
from web.services import context

B = TypeVar("B", bound=BaseModel)

log = logs.get_logger(__name__)


class OwnerTokenCreate(BaseModel):
    """What `POST /v1/owner-tokens` takes."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    owner: Name
    seconds: Annotated[int, Field(ge=1, le=owner_tokens.MAX_LIFETIME_SECONDS)] | None = None


class TokenCreate(BaseModel):
    """What `POST /v1/tokens` takes."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Name
    role: Literal["application", "admin"] = "application"


async def create_owner_token(request: Request) -> Response:
    """Answer 201 with a token that sees one owner's rows for a while; nothing of it is stored."""
    settings = context.get_context(request).settings
    wanted = _read(await json_body.read_object(request), OwnerTokenCreate)
    key = owner_tokens.derive_signing_key(settings)
    if key is None:
        raise unavailable("neither MOORAGE_OWNER_TOKEN_SECRET nor MOORAGE_API_TOKEN is set where moorage runs")
    until = int(time.time() + (wanted.seconds or settings.owner_token_seconds))
    token = owner_tokens.encode(key, OwnerToken(wanted.owner, until))
    expires_at = datetime.fromtimestamp(until, UTC)
    return problems.json_response(201, {"token": token, "owner": wanted.owner, "expires_at": expires_at})


async def list_tokens(request: Request) -> Response:
    """Answer 200 with what is known of every API token; the tokens themselves stand nowhere."""
    rows = await context.get_context(request).database.run(lambda database: database.run(api_tokens.list_tokens))
    return problems.json_response(200, {"tokens": [_token_fields(row) for row in rows]})


async def create_token(request: Request) -> Response:
    """Answer 201 with a new API token, which is shown this once."""
    wanted = _read(await json_body.read_object(request), TokenCreate)
    row, token = await context.get_context(request).database.run(
        lambda database: database.run(lambda conn: api_tokens.create(conn, wanted.name, wanted.role))
    )
    log.info("token.made", token_id=row["id"], name=row["name"], role=row["role"])
    return problems.json_response(201, {**_token_fields(row), "token": token})


async def revoke_token(request: Request) -> Response:
    """Answer 204 when a token is ended with this request, 404 when there is none that lives."""
    token_id = ids.parse_id(request.path_params["token_id"], "token")
    row = await context.get_context(request).database.run(
        lambda database: database.run(lambda conn: api_tokens.revoke(conn, token_id))
    )
    if row is None:
        raise ids.not_found("token")
    log.info("token.revoked", token_id=row["id"], name=row["name"])
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


def _read(body: dict[str, Any], wanted: type[B]) -> B:
    try:
        return wanted.model_validate(body)
    except ValidationError as error:
        raise validation.invalid_fields(
            [validation.explain_error(item, wanted) for item in validation.limited_errors(error)]
        ) from error


def _token_fields(row: dict[str, Any]) -> dict[str, Any]:
    named = {name: row[name] for name in ("name", "role", "created_at", "revoked_at")}
    return {"token_id": row["id"], **named}
