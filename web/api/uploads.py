"""/v1/uploads: input files, private, shown by addresses that live five minutes."""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from db import uploads as rows
from db.connection import Connection, Row
from db.uploads import Upload
from moorage import logs
from tasks import uploads
from tasks.uploads import USER_URL_SECONDS
from web.http import ids, permissions, problems, query, validation
from web.http.problems import Problem
from web.services import context, multipart, upload_spool
from web.services.context import AppContext
from web.services.upload_spool import SpooledFile

log = logs.get_logger(__name__)

UPLOAD_FIELDS: Final = (
    "owner", "media", "format", "content_type", "bytes", "sha256", "width_px", "height_px", "duration_s", "created_at",
)  # fmt: skip


async def create_upload(request: Request) -> Response:
    """Answer 201 with the upload: the body is the file, or a form with one file and the field `owner`."""
    at = context.get_context(request)
    given = query.parse_query(request, query.UploadQuery).owner
    with at.upload_spool.reserve(permissions.get_caller(request).owner):
        if multipart.is_form(request):
            file, owner = await _spool_form(request, at, given)
        else:
            owner = _require_owner(request, given)
            file = await _spool_body(request, at)
        try:
            if not file.bytes:
                raise validation.invalid_field("file", "is empty: send a picture or a video")
            upload, moment = await at.upload_spool.store(at.database, file, owner)
        finally:
            file.file.close()
    log.info("upload.recorded", upload_id=upload.id, bytes=upload.bytes)
    location = f"{request.url.path}/{upload.id}"  # with the prefix it was asked by
    return problems.json_response(201, _created_fields(at, upload, {"created_at": moment}), {"Location": location})


async def get_upload(request: Request) -> Response:
    """Answer 200 with an upload and a fresh address of its file, 404 when there is none or it was deleted."""
    at = context.get_context(request)
    upload_id = ids.parse_id(request.path_params["upload_id"], "upload")
    row = await at.database.run(lambda database: database.run(lambda conn: rows.get(conn, upload_id)))
    if row is None or not permissions.get_caller(request).can_see(row["owner"]):
        raise ids.not_found("upload")
    return problems.json_response(200, _upload_fields(at, row))


async def delete_upload(request: Request) -> Response:
    """Answer 204 when an upload is deleted, now or before, 404 when there never was one."""
    at = context.get_context(request)
    upload_id = ids.parse_id(request.path_params["upload_id"], "upload")
    caller = permissions.get_caller(request)
    is_there, key = await at.database.run(
        lambda database: database.run(lambda conn: _delete_row(conn, upload_id, caller))
    )
    if not is_there:
        raise ids.not_found("upload")
    if key is not None:
        log.info("upload.deleted", upload_id=upload_id)
        await _delete_object(at, key)
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


def _delete_row(conn: Connection, upload_id: UUID, caller: permissions.Caller) -> tuple[bool, str | None]:
    owner = rows.get_owner(conn, upload_id)
    if owner is None or not caller.can_see(owner):
        return False, None
    return True, rows.mark_deleted(conn, upload_id)


async def _delete_object(at: AppContext, key: str) -> None:
    """Delete the object that no row names any more; where that fails the orphan sweep does it."""
    blobs = at.upload_spool.storage
    try:
        await at.upload_spool.run_storage(lambda: blobs.delete(blobs.private_bucket, key))
    except Problem as error:
        log.warning("upload.left_to_sweep", key=key, error=error.detail)


async def _spool_body(request: Request, at: AppContext) -> SpooledFile:
    multipart.check_content_length(request, at.upload_spool.max_bytes)
    file = at.upload_spool.create_file()
    try:
        async for chunk in upload_spool.read_chunks(request):
            await file.write(chunk)
    except BaseException:
        file.file.close()
        raise
    return file


async def _spool_form(request: Request, at: AppContext, given: str | None) -> tuple[SpooledFile, str]:
    form = await multipart.read_form(request, at.upload_spool, max_files=1)
    try:
        fields = query.parse_pairs(form.fields.items(), query.UploadQuery)
        if given is not None and fields.owner is not None:
            raise validation.invalid_field("owner", "stands in the address and in the form: write it once")
        owner = _require_owner(request, given if given is not None else fields.owner)
        if not form.files:
            raise validation.invalid_field("file", "is missing: send one file in the form")
    except BaseException:
        form.close()
        raise
    return form.files[0][1], owner


def _require_owner(request: Request, given: str | None) -> str:
    owner = permissions.get_caller(request).resolve_owner(given)
    if owner is None:
        raise validation.invalid_field("owner", "is missing: it must be given")
    return owner


def _created_fields(at: AppContext, upload: Upload, more: Mapping[str, Any]) -> dict[str, Any]:
    media = upload.media
    facts = {name: getattr(media, name) for name in UPLOAD_FIELDS if hasattr(media, name)}
    return _upload_fields(at, {"id": upload.id, "key": upload.key, "owner": upload.owner, **facts,
                       "bytes": upload.bytes, "sha256": upload.sha256, **more})  # fmt: skip


def _upload_fields(at: AppContext, row: Row) -> dict[str, Any]:
    blobs = at.upload_spool.storage
    url = blobs.presign_get(blobs.private_bucket, row["key"], USER_URL_SECONDS)
    named = {"upload_id": row["id"], **{name: row[name] for name in UPLOAD_FIELDS}}
    return {**named, "url": url, "url_seconds": uploads.USER_URL_SECONDS}
