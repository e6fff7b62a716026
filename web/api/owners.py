"""/v1/usage: what an owner uses; /v1/erasures: an admin removes everything of an owner, and a sweep does the work."""

from typing import Final, Literal
from uuid import UUID

from db import erasures, owner_limits
from db.connection import Row
from moorage.setting_types import OWNER_LIMITS
from tasks import erasure_request
from web.api.responses import Timestamp, UsageView, View
from web.http.json_body import Json
from web.http.problems import not_found
from web.http.query import Filters, OwnerQuery
from web.http.router import Router
from web.http.validation import Body, Name, PathId
from web.services.context import AdminOnly, AnyCaller, Context, ViewerOnly

router: Final = Router(tags=["erasures"])


@router.get("/usage", tags=["jobs"], response_description="use and limits")
async def get_usage(params: Filters[OwnerQuery], caller: AnyCaller, ctx: Context) -> UsageView:
    """Return what an owner uses of its limits; a limit is null if there is none for this caller."""
    owner, limits = caller.require_owner(params.owner), caller.get_limits(ctx.settings)
    use = await ctx.database.transaction(lambda conn: owner_limits.read(conn, owner))
    fields = {name: {"used": use[name], "limit": limits.get(name)} for name in OWNER_LIMITS}
    return UsageView.model_validate({"owner": owner, **fields})


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


@router.post("/erasures", status_code=202, response_description="recorded, now or before", dependencies=[AdminOnly])
async def create_erasure(ctx: Context, body: Json[ErasureCreate]) -> Erasure:
    """Remove an owner: its tokens are revoked at once, the rest is deleted by the workers; this cannot be undone."""
    return _build_erasure(await ctx.database.run(lambda db: erasure_request.request_erasure(db, body.owner)))


@router.get("/erasures/{erasure_id}", response_description="the erasure", dependencies=[ViewerOnly])
async def get_erasure(erasure_id: PathId, ctx: Context) -> Erasure:
    """Return the state of an erasure, and what it has removed."""
    row = await ctx.database.transaction(lambda conn: erasures.get(conn, erasure_id))
    if row is None:
        raise not_found("erasure")
    return _build_erasure(row)


def _build_erasure(row: Row) -> Erasure:
    state = "erasing" if row["finished_at"] is None else "finished"
    return Erasure.model_validate({"erasure_id": row["id"], "state": state, **row})
