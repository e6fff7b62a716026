"""GET /v1/dead-letters/{dead_letter_id}, with a link to the file in quarantine, and the file itself."""

import time
from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response

from db import dead_letters, quarantine
from db.connection import Connection, Row
from moorage import quarantine_links
from moorage.model import DeadLetter
from web.http import ids, problems, query
from web.services import context


async def get_dead_letter(request: Request) -> Response:
    """Return a dead letter; if its file is in quarantine, with a link that is valid for five minutes."""
    ctx = context.get_context(request)
    dead_letter_id = ids.parse_id(request.path_params["dead_letter_id"], "dead letter")

    def read(conn: Connection) -> tuple[DeadLetter | None, Row | None]:
        letter = dead_letters.get(conn, dead_letter_id)
        return letter, quarantine.find(conn, letter.subject_id) if letter else None

    letter, file = await ctx.database.transaction(read)
    if letter is None:
        raise ids.not_found("dead letter")
    fields = {"dead_letter_id": letter.id, **{k: v for k, v in asdict(letter).items() if k != "id"}, "quarantine": None}
    if file is not None:
        url = quarantine_links.build_link(ctx.settings, letter.subject_id, time.time())
        link = {"url": url, "url_seconds": quarantine_links.LINK_SECONDS}
        fields["quarantine"] = {name: value for name, value in file.items() if name != "key"} | link
    return problems.json_response(200, fields)


async def get_quarantined_file(request: Request) -> Response:
    """Download a file from quarantine, by a signed link only."""
    ctx = context.get_context(request)
    output_id = ids.parse_id(request.path_params["output_id"], "file")
    link = query.parse_query(request, query.LinkQuery)
    if not quarantine_links.is_valid(ctx.settings, output_id, link.until, link.signature, time.time()):
        raise problems.Problem(403, "the link is invalid or expired: request the dead letter again")
    file = await ctx.database.transaction(lambda conn: quarantine.find(conn, output_id))
    if file is None:
        raise ids.not_found("file")
    reader, name = ctx.quarantine_reader, f"{output_id}.bin"
    return await reader.build_response(file, name, with_body=request.method != "HEAD")
