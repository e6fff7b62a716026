"""/v1/erasures: an admin removes everything of an owner; a sweep does the work."""

from typing import Annotated, Final, Literal
from uuid import UUID

from fastapi import Depends

from db import erasures
from db.connection import Row
from tasks import erasure_request
from web.api.responses import Timestamp, View
from web.http import ids
from web.http.ids import PathId
from web.http.json_body import JsonBody
from web.http.router import Router
from web.http.validation import Body, Name
from web.services.dependencies import AdminOnly, Context, ViewerOnly

router: Final = Router(prefix="/erasures", tags=["erasures"])


class Erasure(View):
    """The removal of an owner, who is not named; `removed` are numbers of rows and objects."""

    erasure_id: UUID
    state: Literal["erasing", "finished"]
    requested_at: Timestamp
    finished_at: Timestamp | None
    removed: dict[str, int]


class ErasureCreate(Body):
    """The owner to remove, with all rows, files, uploads, projects and tokens."""

    owner: Name


@router.post("", status_code=202, response_description="recorded, now or before", dependencies=[AdminOnly])
async def create_erasure(ctx: Context, body: Annotated[ErasureCreate, Depends(JsonBody(ErasureCreate))]) -> Erasure:
    """Remove an owner: its tokens are revoked at once, the rest is deleted by the workers; this cannot be undone."""
    return _build_erasure(
        await ctx.database.run(lambda database: erasure_request.request_erasure(database, body.owner))
    )


@router.get("/{erasure_id}", response_description="the erasure", dependencies=[ViewerOnly])
async def get_erasure(erasure_id: PathId, ctx: Context) -> Erasure:
    """Return the state of an erasure, and what it has removed."""
    row = await ctx.database.transaction(lambda conn: erasures.get(conn, erasure_id))
    if row is None:
        raise ids.not_found("erasure")
    return _build_erasure(row)


def _build_erasure(row: Row) -> Erasure:
    state = "erasing" if row["finished_at"] is None else "finished"
    return Erasure.model_validate({"erasure_id": row["id"], "state": state, **row})
