"""GET /v1/usage: what an owner uses, and its limits."""

from typing import Final

from db import owner_use
from moorage.setting_types import OWNER_LIMITS
from web.api.responses import UsageView
from web.http import query
from web.http.router import Router
from web.services.dependencies import AnyCaller, Context

router: Final = Router(prefix="/usage", tags=["jobs"])


@router.get("", response_description="use and limits")
async def get_usage(params: query.OwnerFilter, caller: AnyCaller, ctx: Context) -> UsageView:
    """Return what an owner uses of its limits; a limit is null if there is none for this caller."""
    owner, limits = caller.require_owner(params.owner), caller.get_limits(ctx.settings)
    use = await ctx.database.transaction(lambda conn: owner_use.read(conn, owner))
    fields = {name: {"used": use[name], "limit": limits.get(name)} for name in OWNER_LIMITS}
    return UsageView.model_validate({"owner": owner, **fields})
