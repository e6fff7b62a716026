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
_CACHE_ORIGINAL: Final = "public, max-age=31536000, immutable"  # a published idx never changes its bytes
_CACHE_THUMBNAIL: Final = "public, max-age=86400"
_CACHE_REDIRECT: Final = "public, max-age=300"  # where the store is may change, and a render may be deleted
_CORS_HEADERS: Final = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Expose-Headers": "Content-Length, Content-Range, ETag",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
}
_PREFLIGHT_HEADERS: Final = {
    "Access-Control-Allow-Methods": "GET, HEAD",
    "Access-Control-Allow-Headers": "Range, If-None-Match, If-Range",
    "Access-Control-Max-Age": "86400",
}


@dataclass(frozen=True, slots=True)
class AssetFile:
    """What a name means."""

    key: str
    bytes: int
    sha256: str
    content_type: str
    cache_control: str


async def preflight_asset(_request: Request) -> Response:
    """Answer a browser that asks before it reads from another origin."""
    return Response(status_code=204, headers={**_CORS_HEADERS, **_PREFLIGHT_HEADERS})


async def get_asset(request: Request) -> Response:
    """Answer with the file or the way to it, 404 for all that is not published."""
    try:
        return await _build_response(request)
    except Problem as refused:
        refused.headers.update(_CORS_HEADERS)
        raise


async def _build_response(request: Request) -> Response:
    at = context.get_context(request)
    file = await _find_file(request, at)
    if at.streamer is None:
        where = {"Location": urls.build_asset_url(at.asset_base, file.key), "Cache-Control": _CACHE_REDIRECT}
        return Response(status_code=302, headers={**_CORS_HEADERS, **where})
    etag = f'"{file.sha256}"'
    headers = {**_CORS_HEADERS, "ETag": etag, "Cache-Control": file.cache_control}
    if ranges.matches_etag(request.headers.get("if-none-match"), etag):
        return Response(status_code=304, headers=headers)
    span = _requested_range(request, file.bytes, etag)
    size = file.bytes if span is None else span[1] - span[0] + 1
    headers |= {"Content-Type": file.content_type, "Content-Length": str(size), "Accept-Ranges": "bytes"}
    headers["Content-Security-Policy"] = "default-src 'none'; sandbox"  # a file is never a page of this origin
    if span is not None:
        headers["Content-Range"] = f"bytes {span[0]}-{span[1]}/{file.bytes}"
    status = 200 if span is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return await at.streamer.build_response(file.key, span, status, headers)


async def _find_file(request: Request, at: context.AppContext) -> AssetFile:
    render_id = ids.parse_id(request.path_params["render_id"], "file")
    match = _NAME.fullmatch(request.path_params["name"])
    if match is None:
        raise ids.not_found("file")
    idx, thumb, extension = match.groups()
    row = await at.database.run(lambda database: database.run(lambda conn: renders.get_file(conn, render_id, int(idx))))
    if row is None or (thumb and row["thumb_key"] is None):
        raise ids.not_found("file")
    if extension and not row["key"].endswith(f".{extension}"):
        raise ids.not_found("file")
    return _thumbnail(row) if thumb else _original(row)


def _requested_range(request: Request, size: int, etag: str) -> tuple[int, int] | None:
    """Return the part that is asked for; the whole when it is asked for of another version (If-Range)."""
    given = request.headers.get("range") if request.method == "GET" else None
    if request.headers.get("if-range", etag) != etag:
        return None
    try:
        return ranges.parse_range(given, size)
    except ranges.RangeNotSatisfiable as error:
        headers = {"Content-Range": f"bytes */{size}"}
        raise Problem(416, f"the file ends after {size} bytes", headers=headers) from error


def _original(row: Row) -> AssetFile:
    return AssetFile(row["key"], row["bytes"], row["sha256"], row["content_type"], _CACHE_ORIGINAL)


def _thumbnail(row: Row) -> AssetFile:
    return AssetFile(row["thumb_key"], row["thumb_bytes"], row["thumb_sha256"], "image/webp", _CACHE_THUMBNAIL)
