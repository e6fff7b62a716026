"""GET and PUT /v1/projects/{project_id}: an application's document with the files of its scenes, and its progress."""

from typing import Any, Final

import psycopg
from starlette.requests import Request
from starlette.responses import Response

from db import progress, projects
from db.connection import Connection, Row
from moorage import scene_documents
from moorage.text import is_storable
from storage import urls
from web.api import project_schema
from web.http import json_body, permissions, problems, validation
from web.http.permissions import Caller
from web.http.problems import Problem
from web.services import context
from web.services import database as snapshots

_COUNTS: Final = ("jobs", "settled", "failed", "placeholders", "files_asked", "files_kept", "files_failed")


async def get_project(request: Request) -> Response:
    """Answer 200 with a project as it stands, 404 when there is none."""
    at = context.get_context(request)
    project_id, caller = parse_project_id(request), permissions.get_caller(request)
    fields = await at.database.run(
        lambda database: snapshots.read(database, lambda conn: read_project(conn, project_id, caller, at.asset_base))
    )
    return project_response(200, fields)


async def put_project(request: Request) -> Response:
    """Answer 201 with a new project, 200 with one whose document was replaced; `imageUrls` in it are ours."""
    at = context.get_context(request)
    project_id, caller = parse_project_id(request), permissions.get_caller(request)
    body, text = await json_body.read_object_and_text(request)
    owner = project_schema.check_project_body(body, caller)
    match = request.headers.get("if-match")

    def work(conn: Connection) -> tuple[int, dict[str, Any]]:
        is_new = match is None and projects.add(conn, project_id, owner, text)
        project = lock_project(conn, project_id, caller, match)
        if project["owner"] != owner:
            raise Problem(409, f"the project belongs to another owner than {owner!r}: an owner cannot be changed")
        if not is_new:
            projects.replace_document(conn, project_id, text)
            project = lock_project(conn, project_id, caller, None)
        projects.update_image_urls(conn, project, at.asset_base)
        return 201 if is_new else 200, read_project(conn, project_id, caller, at.asset_base)

    return project_response(*await write_document(at, work))


async def write_document(at: context.AppContext, work: Any) -> Any:
    """
    Return what a transaction that writes to a document returns.

    Raises:
        Problem: 422 for JSON that PostgreSQL cannot hold: NUL, half a surrogate, a number of 131,072 digits.
    """
    try:
        return await at.database.run(lambda database: database.run(work))
    except psycopg.DataError as error:
        said = str(error).splitlines()[0]
        raise validation.invalid_field("document", f"cannot be stored: {said}") from error


def parse_project_id(request: Request) -> str:
    """Return the id in a request's path; raises Problem 404 for one that can be nobody's."""
    project_id = str(request.path_params["project_id"])
    if not is_storable(project_id) or len(project_id) > validation.MAX_NAME_CHARS:
        raise _project_not_found()
    return project_id


def lock_project(conn: Connection, project_id: str, caller: Caller, match: str | None) -> Row:
    """
    Lock a project that is to be written to, and return it with its document.

    Raises:
        Problem: 404 for another owner's as for none, 412 when it is not the version that `If-Match` names.
    """
    project = projects.lock(conn, project_id)
    if project is None or not caller.can_see(project["owner"]):
        raise _project_not_found()
    offered = [] if match is None else [tag.strip() for tag in match.split(",")]
    if match is not None and "*" not in offered and _etag(project["document"]) not in offered:
        raise Problem(412, "the document was changed meanwhile: read it again, and write with the ETag it has then")
    return project


def project_response(status: int, fields: dict[str, Any]) -> Response:
    """Return a project with its ETag, which does not change when only `imageUrls` does."""
    return problems.json_response(status, fields, {"ETag": _etag(fields["document"])})


def _etag(document: dict[str, Any]) -> str:
    return f'"{scene_documents.digest_document(document)}"'


def _project_not_found() -> Problem:
    return Problem(404, "there is no such project")


def read_project(conn: Connection, project_id: str, caller: Caller, base: str) -> dict[str, Any]:
    """Return a project as answers show it; raises Problem 404 for another owner's as for none."""
    row = projects.get_with_image_urls(conn, project_id, base)
    if row is None or not caller.can_see(row["owner"]):
        raise _project_not_found()
    far = progress.get_progress(conn, project_id)
    unplaced = [
        {
            "render_id": found["render_id"],
            "idx": found["idx"],
            "scene": found["scene"],
            "url": urls.build_asset_url(base, found["key"]),
        }
        for found in row["unplaced"]
    ]
    return {
        "project_id": row["id"],
        "owner": row["owner"],
        "status": far["status"],
        "image_upload_progress": far["image_upload_progress"],
        "progress": {name: far[name] for name in _COUNTS},
        "failures": progress.list_failed_jobs(conn, project_id),
        "generated_output": {"scenes": scene_documents.list_scene_images(row["document"])},
        "document": row["document"],
        "unplaced": unplaced,
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }
