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
from tasks.uploads import FOR_PEOPLE_SECONDS
from web.http import ids, permissions, problems, query, validation
from web.http.problems import Problem
from web.services import context, multipart, upload_spool
from web.services.context import Desk
from web.services.upload_spool import Incoming

log = logs.get(__name__)

SHOWN: Final = (
    "owner", "media", "format", "content_type", "bytes", "sha256", "width_px", "height_px", "duration_s", "created_at",
)  # fmt: skip


async def create(request: Request) -> Response:
    """Answer 201 with the upload: the body is the file, or a form with one file and the field `owner`."""
    at = context.of(request)
    given = query.read(request, query.Uploading).owner
    with at.intake.room(permissions.of(request).owner):
        if multipart.is_form(request):
            file, owner = await _form(request, at, given)
        else:
            owner = _owner(request, given)
            file = await _body(request, at)
        try:
            if not file.bytes:
                raise validation.wrong("file", "is empty: send a picture or a video")
            upload, moment = await at.intake.keep(at.threads, file, owner)
        finally:
            file.file.close()
    log.info("upload.recorded", upload_id=upload.id, bytes=upload.bytes)
    location = f"{request.url.path}/{upload.id}"  # with the prefix it was asked by
    return problems.answer(201, _new(at, upload, {"created_at": moment}), {"Location": location})


async def show(request: Request) -> Response:
    """Answer 200 with an upload and a fresh address of its file, 404 when there is none or it was deleted."""
    at = context.of(request)
    upload_id = ids.read(request.path_params["upload_id"], "upload")
    row = await at.threads.run(lambda database: database.run(lambda conn: rows.show(conn, upload_id)))
    if row is None or not permissions.of(request).sees(row["owner"]):
        raise ids.missing("upload")
    return problems.answer(200, _shown(at, row))


async def delete(request: Request) -> Response:
    """Answer 204 when an upload is deleted, now or before, 404 when there never was one."""
    at = context.of(request)
    upload_id = ids.read(request.path_params["upload_id"], "upload")
    caller = permissions.of(request)
    is_there, key = await at.threads.run(lambda database: database.run(lambda conn: _delete(conn, upload_id, caller)))
    if not is_there:
        raise ids.missing("upload")
    if key is not None:
        log.info("upload.deleted", upload_id=upload_id)
        await _remove(at, key)
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


def _delete(conn: Connection, upload_id: UUID, caller: permissions.Caller) -> tuple[bool, str | None]:
    owner = rows.owner(conn, upload_id)
    if owner is None or not caller.sees(owner):
        return False, None
    return True, rows.delete(conn, upload_id)


async def _remove(at: Desk, key: str) -> None:
    """Delete the object that no row names any more; where that fails the orphan sweep does it."""
    blobs = at.intake.blobs
    try:
        await at.intake.run(lambda: blobs.delete(blobs.private_bucket, key))
    except Problem as error:
        log.warning("upload.left_to_sweep", key=key, error=error.detail)


async def _body(request: Request, at: Desk) -> Incoming:
    multipart.check_length(request, at.intake.max_bytes)
    file = at.intake.incoming()
    try:
        async for chunk in upload_spool.chunks(request):
            await file.write(chunk)
    except BaseException:
        file.file.close()
        raise
    return file


async def _form(request: Request, at: Desk, given: str | None) -> tuple[Incoming, str]:
    form = await multipart.read(request, at.intake, max_files=1)
    try:
        fields = query.take(form.fields.items(), query.Uploading)
        if given is not None and fields.owner is not None:
            raise validation.wrong("owner", "stands in the address and in the form: write it once")
        owner = _owner(request, given if given is not None else fields.owner)
        if not form.files:
            raise validation.wrong("file", "is missing: send one file in the form")
    except BaseException:
        form.close()
        raise
    return form.files[0][1], owner


def _owner(request: Request, given: str | None) -> str:
    owner = permissions.of(request).whose(given)
    if owner is None:
        raise validation.wrong("owner", "is missing: it must be given")
    return owner


def _new(at: Desk, upload: Upload, more: Mapping[str, Any]) -> dict[str, Any]:
    media = upload.media
    facts = {name: getattr(media, name) for name in SHOWN if hasattr(media, name)}
    return _shown(at, {"id": upload.id, "key": upload.key, "owner": upload.owner, **facts,
                       "bytes": upload.bytes, "sha256": upload.sha256, **more})  # fmt: skip


def _shown(at: Desk, row: Row) -> dict[str, Any]:
    blobs = at.intake.blobs
    url = blobs.presign_get(blobs.private_bucket, row["key"], FOR_PEOPLE_SECONDS)
    named = {"upload_id": row["id"], **{name: row[name] for name in SHOWN}}
    return {**named, "url": url, "url_seconds": uploads.FOR_PEOPLE_SECONDS}
