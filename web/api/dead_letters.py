"""GET /v1/dead-letters/{dead_letter_id}, with a link to the file in quarantine, and the file itself."""

import time
from dataclasses import asdict
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from db import dead_letters, quarantine
from db.connection import Connection, Row
from moorage import quarantine_links
from moorage.model import DeadLetter
from web.api.responses import DeadLetterView
from web.http import ids, query
from web.http.ids import PathId
from web.http.permissions import Level
from web.http.problems import Problem
from web.http.router import Router
from web.services.dependencies import AnyCaller, Context, ViewerOnly

router: Final = Router(tags=["dead letters"])
_FILE: Final = {"schema": {"type": "string", "format": "binary"}}

public_router: Final = Router(tags=["dead letters"])


@router.get("/dead-letters/{dead_letter_id}", response_description="the dead letter", dependencies=[ViewerOnly])
async def get_dead_letter(dead_letter_id: PathId, caller: AnyCaller, ctx: Context) -> DeadLetterView:
    """Return a dead letter; if its file is in quarantine, with a link that is valid for five minutes, for admins."""

    def read(conn: Connection) -> tuple[DeadLetter | None, Row | None]:
        letter = dead_letters.get(conn, dead_letter_id)
        return letter, quarantine.find(conn, letter.subject_id) if letter else None

    letter, file = await ctx.database.transaction(read)
    if letter is None:
        raise ids.not_found("dead letter")
    fields: dict[str, Any] = {"dead_letter_id": letter.id, **asdict(letter), "quarantine": None}
    if file is not None:
        is_admin = caller.level >= Level.ADMIN
        url = quarantine_links.build_link(ctx.settings, letter.subject_id, time.time()) if is_admin else None
        fields["quarantine"] = {**file, "url": url, "url_seconds": quarantine_links.LINK_SECONDS}
    return DeadLetterView.model_validate(fields)


@public_router.get(
    "/assets/quarantine/{output_id}",
    response_class=Response,
    responses={200: {"description": "the file, as an attachment", "content": {"application/octet-stream": _FILE}}},
)
async def get_quarantined_file(request: Request, output_id: PathId, link: query.Link, ctx: Context) -> Response:
    """Download a file from quarantine, by a signed link only."""
    if not quarantine_links.is_valid(ctx.settings, output_id, link.until, link.signature, time.time()):
        raise Problem(403, "the link is invalid or expired: request the dead letter again")
    file = await ctx.database.transaction(lambda conn: quarantine.find(conn, output_id))
    if file is None:
        raise ids.not_found("file")
    return await ctx.quarantine_reader.build_response(file, f"{output_id}.bin", with_body=request.method != "HEAD")
