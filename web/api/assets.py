"""
GET /v1/assets/renders/{render_id}/{name}: a published file or its thumbnail under an address that stays.

Open to everybody: a render's id cannot be guessed, and the files are public where they are stored.
"""

import re
from dataclasses import dataclass
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from db import renders
from db.connection import Row
from storage import urls
from web.http import ids, ranges
from web.http.problems import Problem
from web.services import context

PREFIX: Final = "/assets/"  # below the API's own; all under it is open
_NAME: Final = re.compile(r"(0|[1-9][0-9]{0,8})(?:(_thumb\.webp)|\.([a-z0-9]{1,8}))?")
_OF_ORIGINALS: Final = "public, max-age=31536000, immutable"  # a published idx never changes its bytes
_OF_THUMBNAILS: Final = "public, max-age=86400"
_OF_REDIRECTS: Final = "public, max-age=300"  # where the store is may change, and a render may be deleted
_FOR_EVERY_ORIGIN: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Content-Length, Content-Range, ETag",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
}
_PREFLIGHT: Final = {
    "Access-Control-Allow-Methods": "GET, HEAD",
    "Access-Control-Allow-Headers": "Range, If-None-Match, If-Range",
    "Access-Control-Max-Age": "86400",
}


@dataclass(frozen=True, slots=True)
class File:
    """What a name means."""

    key: str
    bytes: int
    sha256: str
    content_type: str
    cache_control: str


async def preflight(_request: Request) -> Response:
    """Answer a browser that asks before it reads from another origin."""
    return Response(status_code=204, headers={**_FOR_EVERY_ORIGIN, **_PREFLIGHT})


async def show(request: Request) -> Response:
    """Answer with the file or the way to it, 404 for all that is not published."""
    try:
        return await _show(request)
    except Problem as refused:
        refused.headers.update(_FOR_EVERY_ORIGIN)
        raise


async def _show(request: Request) -> Response:
    at = context.of(request)
    file = await _find(request, at)
    if at.streamer is None:
        where = {"Location": urls.asset_url(at.asset_base, file.key), "Cache-Control": _OF_REDIRECTS}
        return Response(status_code=302, headers={**_FOR_EVERY_ORIGIN, **where})
    etag = f'"{file.sha256}"'
    headers = {**_FOR_EVERY_ORIGIN, "ETag": etag, "Cache-Control": file.cache_control}
    if ranges.names(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    span = _span(request, file.bytes, etag)
    size = file.bytes if span is None else span[1] - span[0] + 1
    headers |= {"Content-Type": file.content_type, "Content-Length": str(size), "Accept-Ranges": "bytes"}
    headers["Content-Security-Policy"] = "default-src 'none'; sandbox"  # a file is never a page of this origin
    if span is not None:
        headers["Content-Range"] = f"bytes {span[0]}-{span[1]}/{file.bytes}"
    status = 200 if span is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return await at.streamer.answer(file.key, span, status, headers)


async def _find(request: Request, at: context.Desk) -> File:
    render_id = ids.read(request.path_params["render_id"], "file")
    match = _NAME.fullmatch(request.path_params["name"])
    if match is None:
        raise ids.missing("file")
    idx, thumb, extension = match.groups()
    row = await at.threads.run(lambda database: database.run(lambda conn: renders.file(conn, render_id, int(idx))))
    if row is None or (thumb and row["thumb_key"] is None):
        raise ids.missing("file")
    if extension and not row["key"].endswith(f".{extension}"):
        raise ids.missing("file")
    return _thumbnail(row) if thumb else _original(row)


def _span(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """Return the part that is asked for; the whole when it is asked for of another version (If-Range)."""
    given = request.headers.get("range") if request.method == "GET" else None
    if request.headers.get("if-range", etag) != etag:
        return None
    try:
        return ranges.parse(given, size)
    except ranges.Unsatisfiable as error:
        headers = {"Content-Range": f"bytes */{size}"}
        raise Problem(416, f"the file ends after {size} bytes", headers=headers) from error


def _original(row: Row) -> File:
    return File(row["key"], row["bytes"], row["sha256"], row["content_type"], _OF_ORIGINALS)


def _thumbnail(row: Row) -> File:
    return File(row["thumb_key"], row["thumb_bytes"], row["thumb_sha256"], "image/webp", _OF_THUMBNAILS)
