"""GET /v1/assets/renders/{render_id}/{name}: a published file. Public, since a render's id cannot be guessed."""

import re
from typing import Annotated, Final
from uuid import UUID

from fastapi import Header
from starlette.requests import Request
from starlette.responses import Response

from db import renders
from db.connection import Connection, Row
from storage import urls
from web.http import problems
from web.http.problems import Problem
from web.http.router import Router
from web.http.validation import PathId
from web.services.context import AppContext, Context

PREFIX: Final = "/assets/renders"
router: Final = Router(prefix=PREFIX, tags=["assets"])
RangeHeader = Annotated[str | None, Header(alias="Range", description="one range of bytes", examples=["bytes=0-99"])]

# As in the API's description, or as at the end of an object's key: then ASSET_BASE_URL may be that of this endpoint.
_NAME: Final = re.compile(r"(0|[1-9][0-9]{0,8})(-[0-9a-f]{16}-[0-9a-f]{8})?(?:(_thumb\.webp)|\.([a-z0-9]{1,8}))?")
_SINGLE_RANGE: Final = re.compile(r"bytes[ \t]*=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE)
_CACHE_ORIGINAL: Final = "public, max-age=31536000, immutable"  # the bytes of a published idx never change
_CACHE_THUMBNAIL: Final = "public, max-age=86400"
_CACHE_FIRST: Final = "public, max-age=300"  # of 0 if it is not variant 0: an image may be published later
_CACHE_REDIRECT: Final = "public, max-age=300"  # the storage URL may change, and a render may be deleted
CORS_HEADERS: Final = {
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


@router.options("/{render_id}/{name}", status_code=204, response_description="what other origins may use")
async def preflight_asset(render_id: str, name: str) -> Response:  # noqa: ARG001  # described in the document
    """Respond to a CORS preflight request."""
    return Response(status_code=204, headers={**CORS_HEADERS, **_PREFLIGHT_HEADERS})


_FILE: Final = {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}}


@router.get(
    "/{render_id}/{name}",
    response_class=Response,
    responses={
        200: {"description": "the file", **_FILE},
        206: {"description": "the requested range", **_FILE},
        302: {"description": "the file in storage"},
        304: {"description": "not modified"},
    },
)
async def get_asset(
    request: Request,
    render_id: PathId,
    name: str,
    ctx: Context,
    range_header: RangeHeader = None,
    if_range: Annotated[str | None, Header(alias="If-Range", description="an ETag: the range is of this file")] = None,
    if_none_match: Annotated[
        str | None, Header(alias="If-None-Match", description="ETags of files that the client has")
    ] = None,
) -> Response:
    """Return a published file, or a redirect to it."""
    file = await _find_file(render_id, name, ctx)
    if ctx.streamer is None or ctx.settings.assets == "signed":
        signer, base = ctx.streamer, ctx.asset_base
        url = await signer.build_signed_url(file["key"]) if signer else urls.build_asset_url(base, file["key"])
        redirect = {"Location": url, "Cache-Control": _CACHE_REDIRECT}
        return Response(status_code=302, headers={**CORS_HEADERS, **redirect})
    etag = '"{sha256}"'.format_map(file)
    headers = {**CORS_HEADERS, "ETag": etag, "Cache-Control": file["cache_control"]}
    if matches_etag(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    is_of_file = request.method == "GET" and if_range in (None, etag)
    byte_range = parse_range(range_header, file["bytes"]) if is_of_file else None
    size = file["bytes"] if byte_range is None else byte_range[1] - byte_range[0] + 1
    headers |= {"Content-Type": file["content_type"], "Content-Length": str(size), "Accept-Ranges": "bytes"}
    if file["media"] == "file":
        headers["Content-Disposition"] = "attachment"
    headers["Content-Security-Policy"] = "default-src 'none'; sandbox"  # a file must never run as a page of this origin
    if byte_range is not None:
        headers["Content-Range"] = f"bytes {byte_range[0]}-{byte_range[1]}/{file['bytes']}"
    status = 200 if byte_range is None else 206
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    return await ctx.streamer.build_response(file["key"], byte_range, status, headers)


async def _find_file(render_id: UUID, name: str, ctx: AppContext) -> Row:
    """Return the key, bytes, sha256, content_type, media and cache_control of a file. Raises Problem: 404."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise problems.not_found("file")
    idx, from_key, thumb, extension = match.groups()

    def read(conn: Connection) -> Row | None:
        row = renders.get_file(conn, render_id, int(idx))
        is_plain_0 = idx == "0" and not from_key and not extension  # the first image or video, if 0 is neither
        return renders.get_file(conn, render_id, None) if row and is_plain_0 and row["media"] == "file" else row

    row = await ctx.database.transaction(read)
    if row is None or (extension and not row["key"].endswith(f".{extension}")):
        raise problems.not_found("file")
    row["cache_control"] = _CACHE_ORIGINAL if row["idx"] == int(idx) else _CACHE_FIRST
    if thumb:
        row |= {name: row[f"thumb_{name}"] for name in ("key", "bytes", "sha256")}
        row |= {"content_type": "image/webp", "media": "image", "cache_control": _CACHE_THUMBNAIL}
    if row["key"] is None or (from_key and row["key"] != f"renders/{render_id}/{match[0]}"):
        raise problems.not_found("file")
    return row


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """
    Return the first and last byte of a Range header; None for the whole file, also if malformed (RFC 9110, 14.2).

    Raises Problem: 416, it starts after the end of the file.
    """
    match = _SINGLE_RANGE.fullmatch(header) if header is not None else None
    if match is None or match.groups() == ("", ""):
        return None
    first, last = (int(text) if text else None for text in match.groups())
    if first is not None and last is not None and last < first:
        return None
    is_after_end = last == 0 if first is None else first >= size
    if is_after_end:
        headers = {"Content-Range": f"bytes */{size}"}
        raise Problem(416, f"the range starts after the end of the file ({size} bytes)", headers=headers)
    if first is None:
        return max(0, size - (last or 0)), size - 1
    return first, size - 1 if last is None else min(last, size - 1)


def matches_etag(header: str | None, etag: str) -> bool:
    """Return True if an If-None-Match header contains the entity tag (weak comparison)."""
    tags = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return "*" in tags or etag in tags
