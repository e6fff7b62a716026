"""/v1/uploads: input files, private, shown by addresses that live five minutes."""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from starlette.requests import Request
from starlette.responses import Response

from db import uploads as rows
from db.connect import Connection, Row
from db.uploads import Upload
from moorage import logs
from tasks import uploads
from tasks.uploads import FOR_PEOPLE_SECONDS
from web import access, asked, desk, forms, ids, intake, problems, queries
from web.desk import Desk
from web.intake import Incoming
from web.problems import Problem

log = logs.get(__name__)

SHOWN: Final = (
    "owner", "media", "format", "content_type", "bytes", "sha256", "width_px", "height_px", "duration_s", "created_at",
)  # fmt: skip


async def create(request: Request) -> Response:
    """Answer 201 with the upload: the body is the file, or a form with one file and the field `owner`."""
    at = desk.of(request)
    given = queries.read(request, queries.Uploading).owner
    with at.intake.room(access.of(request).owner):
        if forms.is_form(request):
            file, owner = await _form(request, at, given)
        else:
            owner = _owner(request, given)
            file = await _body(request, at)
        try:
            if not file.bytes:
                raise asked.wrong("file", "is empty: send a picture or a video")
            upload, moment = await at.intake.keep(at.threads, file, owner)
        finally:
            file.file.close()
    log.info("upload.recorded", upload_id=upload.id, bytes=upload.bytes)
    location = f"{request.url.path}/{upload.id}"  # with the prefix it was asked by
    return problems.answer(201, _new(at, upload, {"created_at": moment}), {"Location": location})


async def show(request: Request) -> Response:
    """Answer 200 with an upload and a fresh address of its file, 404 when there is none or it was deleted."""
    at = desk.of(request)
    upload_id = ids.read(request.path_params["upload_id"], "upload")
    row = await at.threads.run(lambda database: database.run(lambda conn: rows.show(conn, upload_id)))
    if row is None or not access.of(request).sees(row["owner"]):
        raise ids.missing("upload")
    return problems.answer(200, _shown(at, row))


async def delete(request: Request) -> Response:
    """Answer 204 when an upload is deleted, now or before, 404 when there never was one."""
    at = desk.of(request)
    upload_id = ids.read(request.path_params["upload_id"], "upload")
    caller = access.of(request)
    is_there, key = await at.threads.run(lambda database: database.run(lambda conn: _delete(conn, upload_id, caller)))
    if not is_there:
        raise ids.missing("upload")
    if key is not None:
        log.info("upload.deleted", upload_id=upload_id)
        await _remove(at, key)
    return Response(status_code=204, headers={"Cache-Control": "no-store"})


def _delete(conn: Connection, upload_id: UUID, caller: access.Caller) -> tuple[bool, str | None]:
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
    forms.check_length(request, at.intake.max_bytes)
    file = at.intake.incoming()
    try:
        async for chunk in intake.chunks(request):
            await file.write(chunk)
    except BaseException:
        file.file.close()
        raise
    return file


async def _form(request: Request, at: Desk, given: str | None) -> tuple[Incoming, str]:
    form = await forms.read(request, at.intake, max_files=1)
    try:
        fields = queries.take(form.fields.items(), queries.Uploading)
        if given is not None and fields.owner is not None:
            raise asked.wrong("owner", "stands in the address and in the form: write it once")
        owner = _owner(request, given if given is not None else fields.owner)
        if not form.files:
            raise asked.wrong("file", "is missing: send one file in the form")
    except BaseException:
        form.close()
        raise
    return form.files[0][1], owner


def _owner(request: Request, given: str | None) -> str:
    owner = access.of(request).whose(given)
    if owner is None:
        raise asked.wrong("owner", "is missing: it must be given")
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
