"""/v1/uploads: private input files, returned with signed URLs that are valid for five minutes."""

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from db import uploads
from db.connection import Connection, Row
from moorage import logs
from moorage.ids import uuid7
from tasks.uploads import USER_URL_SECONDS
from web.http import ids, permissions, problems, query
from web.http.problems import Problem
from web.http.validation import invalid_field
from web.services import context, multipart, upload_spool
from web.services.context import AppContext
from web.services.upload_spool import SpooledFile

log = logs.get_logger(__name__)

UPLOAD_FIELDS: Final = (
    "owner", "media", "format", "content_type", "bytes", "sha256", "width_px", "height_px", "duration_s", "created_at",
)  # fmt: skip


async def create_upload(request: Request) -> Response:
    """Store an input file: the body is the file, or a form with one file and the field `owner`."""
    ctx = context.get_context(request)
    query_owner = query.parse_query(request, query.UploadQuery).owner
    with ctx.upload_spool.reserve(permissions.get_caller(request).owner):
        if multipart.is_form(request):
            file, owner = await _spool_form(request, ctx, query_owner)
        else:
            owner = _require_owner(request, query_owner)
            file = await _spool_body(request, ctx)
        try:
            if not file.bytes:
                raise invalid_field("file", "is empty: send an image or a video")
            upload, created_at = await ctx.upload_spool.store(file, owner, uuid7())
        finally:
            file.file.close()
    log.info("upload.recorded", upload_id=upload.id, bytes=upload.bytes)
    location = f"{request.url.path}/{upload.id}"  # with the prefix of the request
    media = {name: getattr(upload.media, name) for name in UPLOAD_FIELDS if hasattr(upload.media, name)}
    row = {name: getattr(upload, name) for name in ("id", "key", "owner", "bytes", "sha256")}
    fields = _upload_fields(ctx, {**media, **row, "created_at": created_at})
    return problems.json_response(201, fields, {"Location": location})


async def get_upload(request: Request) -> Response:
    """Return an upload with a new signed URL of its file."""
    ctx = context.get_context(request)
    upload_id = ids.parse_id(request.path_params["upload_id"], "upload")
    row = await ctx.database.transaction(lambda conn: uploads.get(conn, upload_id))
    upload = permissions.get_caller(request).require_visible(row, "upload")
    return problems.json_response(200, _upload_fields(ctx, upload))


async def delete_upload(request: Request) -> Response:
    """Delete an upload; one that is already deleted is unchanged."""
    ctx, caller = context.get_context(request), permissions.get_caller(request)
    upload_id = ids.parse_id(request.path_params["upload_id"], "upload")

    def delete_row(conn: Connection) -> str | None:
        owner = uploads.get_owner(conn, upload_id)
        if owner is None or not caller.can_see(owner):
            raise ids.not_found("upload")
        return uploads.mark_deleted(conn, upload_id)

    key = await ctx.database.transaction(delete_row)
    if key is not None:
        log.info("upload.deleted", upload_id=upload_id)
        await _delete_object(ctx, key)
    return Response(status_code=204, headers=problems.NO_STORE)


async def _delete_object(ctx: AppContext, key: str) -> None:
    """Delete an object whose row is deleted; on failure the orphan sweep deletes it."""
    storage = ctx.upload_spool.storage
    try:
        await ctx.upload_spool.run_storage(lambda: storage.delete(storage.private_bucket, key))
    except Problem as error:
        log.warning("upload.delete_deferred", key=key, error=error.detail)


async def _spool_body(request: Request, ctx: AppContext) -> SpooledFile:
    multipart.check_content_length(request, ctx.upload_spool.max_bytes)
    file = ctx.upload_spool.create_file()
    try:
        async for chunk in upload_spool.read_chunks(request):
            await file.write(chunk)
    except BaseException:
        file.file.close()
        raise
    return file


async def _spool_form(request: Request, ctx: AppContext, query_owner: str | None) -> tuple[SpooledFile, str]:
    form = await multipart.read_form(request, ctx.upload_spool, max_files=1)
    try:
        form_owner = query.parse_pairs(form.fields.items(), query.UploadQuery).owner
        if query_owner is not None and form_owner is not None:
            raise invalid_field("owner", "is given in the query and in the form")
        owner = _require_owner(request, query_owner if query_owner is not None else form_owner)
        if not form.files:
            raise invalid_field("file", "is required: send one file in the form")
    except BaseException:
        form.close()
        raise
    return form.files[0][1], owner


def _require_owner(request: Request, requested: str | None) -> str:
    owner = permissions.get_caller(request).resolve_owner(requested)
    if owner is None:
        raise invalid_field("owner", "is required")
    return owner


def _upload_fields(ctx: AppContext, row: Row) -> dict[str, Any]:
    storage = ctx.upload_spool.storage
    url = storage.presign_get(storage.private_bucket, row["key"], USER_URL_SECONDS)
    fields = {"upload_id": row["id"], **{name: row[name] for name in UPLOAD_FIELDS}}
    return {**fields, "url": url, "url_seconds": USER_URL_SECONDS}
