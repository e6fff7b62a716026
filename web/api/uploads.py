"""/v1/uploads: private input files, returned with signed URLs that are valid for five minutes."""

from dataclasses import asdict
from typing import Final

from fastapi import Response
from starlette.requests import Request

from db import uploads
from db.connection import Connection, Row
from moorage import logs
from moorage.ids import uuid7
from tasks.uploads import USER_URL_SECONDS
from web.api.responses import Upload, page_model
from web.http import problems, query, validation
from web.http.json_body import read_chunks
from web.http.permissions import Caller
from web.http.problems import Problem
from web.http.query import Filters, OwnerQuery, UploadQuery
from web.http.router import Router
from web.http.validation import PathId, invalid_field
from web.services import multipart
from web.services.context import AnyCaller, AppContext, Context
from web.services.upload_spool import SpooledFile

log = logs.get_logger(__name__)

router: Final = Router(prefix="/uploads", tags=["uploads"])


@router.post("", status_code=201, response_description="the upload, validated, without metadata")
async def create_upload(
    request: Request, response: Response, params: Filters[OwnerQuery], caller: AnyCaller, ctx: Context
) -> Upload:
    """Store an input file: the body is the file, or a form with one file and the field `owner`."""
    upload_id = uuid7()  # of the time when the upload began
    with ctx.upload_spool.reserve(caller.owner):
        if multipart.is_form(request):
            file, owner = await _spool_form(request, caller, ctx, params.owner)
        else:
            owner = caller.require_owner(params.owner)
            file = await _spool_body(request, ctx)
        try:
            if not file.bytes:
                raise invalid_field("file", "is empty: send an image or a video")
            upload, created_at = await ctx.upload_spool.store(file, owner, upload_id)
        finally:
            file.file.close()
    log.info("upload.recorded", upload_id=upload.id, bytes=upload.bytes)
    response.headers["Location"] = f"{request.url.path}/{upload.id}"  # with the prefix of the request
    return _build_upload(ctx, {**asdict(upload), **asdict(upload.media), "created_at": created_at})


@router.get("", response_model=page_model("UploadPage", uploads=Upload), response_description="a page of uploads")
async def list_uploads(params: Filters[UploadQuery], caller: AnyCaller, ctx: Context) -> Row:
    """Return a page of uploads, newest first, each with a new signed URL."""
    owner = caller.resolve_owner(params.owner)
    rows = await ctx.database.transaction(lambda conn: uploads.list_page(conn, owner, params.before, params.limit + 1))
    page, next_id = query.split_page(rows, params.limit)
    return {"uploads": [_build_upload(ctx, row) for row in page], "next": next_id}


@router.get("/{upload_id}", response_description="the upload with a signed URL")
async def get_upload(upload_id: PathId, caller: AnyCaller, ctx: Context) -> Upload:
    """Return an upload with a new signed URL of its file."""
    row = await ctx.database.transaction(lambda conn: uploads.get(conn, upload_id))
    return _build_upload(ctx, caller.require_visible(row, "upload"))


@router.delete("/{upload_id}", status_code=204, response_description="deleted, now or before")
async def delete_upload(upload_id: PathId, caller: AnyCaller, ctx: Context) -> None:
    """Delete an upload; one that is already deleted is unchanged."""

    def delete_row(conn: Connection) -> str | None:
        owner = uploads.get_owner(conn, upload_id)
        if owner is None or not caller.can_see(owner):
            raise problems.not_found("upload")
        return uploads.mark_deleted(conn, upload_id)

    key = await ctx.database.transaction(delete_row)
    if key is None:
        return
    log.info("upload.deleted", upload_id=upload_id)
    storage = ctx.upload_spool.storage
    try:
        await ctx.upload_spool.run_storage(lambda: storage.delete(storage.private_bucket, key))
    except Problem as error:  # the orphan sweep deletes it
        log.warning("upload.delete_deferred", key=key, error=error.detail)


async def _spool_body(request: Request, ctx: AppContext) -> SpooledFile:
    multipart.check_content_length(request, ctx.upload_spool.max_bytes)
    file = ctx.upload_spool.create_file()
    try:
        async for chunk in read_chunks(request):
            await file.write(chunk)
    except BaseException:
        file.file.close()
        raise
    return file


async def _spool_form(
    request: Request, caller: Caller, ctx: AppContext, query_owner: str | None
) -> tuple[SpooledFile, str]:
    form = await multipart.read_form(request, ctx.upload_spool, max_files=1)
    try:
        form_owner = validation.parse_body(form.fields, OwnerQuery).owner
        if query_owner is not None and form_owner is not None:
            raise invalid_field("owner", "is given in the query and in the form")
        owner = caller.require_owner(query_owner if query_owner is not None else form_owner)
        if not form.files:
            raise invalid_field("file", "is required: send one file in the form")
    except BaseException:
        form.close()
        raise
    return form.files[0][1], owner


def _build_upload(ctx: AppContext, row: Row) -> Upload:
    storage = ctx.upload_spool.storage
    url = storage.presign_get(storage.private_bucket, row["key"], USER_URL_SECONDS)
    return Upload.model_validate({**row, "upload_id": row["id"], "url": url, "url_seconds": USER_URL_SECONDS})
