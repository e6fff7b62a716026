"""GET and PUT /v1/projects/{project_id}: an application's document with image URLs per scene, and its progress."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import psycopg
from starlette.requests import Request
from starlette.responses import Response

from db import placements, progress, projects
from db.connection import Connection, Row
from moorage import scene_documents
from moorage.text import is_storable
from storage import urls
from web.api import project_schema
from web.http import ids, json_body, permissions, problems, validation
from web.http.permissions import Caller
from web.http.problems import Problem
from web.services import context
from web.services.context import AppContext

T = TypeVar("T")

_COUNTS: Final = ("jobs", "settled", "failed", "placeholders", "files_asked", "files_kept", "files_failed")


async def get_project(request: Request) -> Response:
    """Return a project with its document and progress."""
    ctx, caller = context.get_context(request), permissions.get_caller(request)
    project_id = parse_project_id(request)
    fields = await ctx.database.read(lambda conn: read_project(conn, project_id, caller, ctx.asset_base))
    return project_response(200, fields)


async def put_project(request: Request) -> Response:
    """Create a project or replace its document; `imageUrls` in the document are computed, not stored."""
    ctx, caller = context.get_context(request), permissions.get_caller(request)
    project_id = parse_project_id(request)
    body, text = await json_body.read_object_and_text(request)
    owner = project_schema.check_project_body(body, caller)
    if_match = request.headers.get("if-match")

    def write(conn: Connection) -> tuple[int, dict[str, Any]]:
        is_new = if_match is None and projects.add(conn, project_id, owner, text)
        project = lock_project(conn, project_id, caller, if_match)
        if project["owner"] != owner:
            raise Problem(409, f"the project belongs to another owner than {owner!r}: the owner cannot be changed")
        if not is_new:
            projects.replace_document(conn, project_id, text)
            project = lock_project(conn, project_id, caller, None)
        placements.update_image_urls(conn, project, ctx.asset_base)
        return 201 if is_new else 200, read_project(conn, project_id, caller, ctx.asset_base)

    return project_response(*await write_document(ctx, write))


async def write_document(ctx: AppContext, work: Callable[[Connection], T]) -> T:
    """Run a transaction that writes a document. Raises Problem: 422 for JSON that PostgreSQL cannot store."""
    try:
        return await ctx.database.transaction(work)
    except psycopg.DataError as error:
        raise validation.invalid_field("document", f"cannot be stored: {str(error).splitlines()[0]}") from error


def parse_project_id(request: Request) -> str:
    project_id = str(request.path_params["project_id"])
    if not is_storable(project_id) or len(project_id) > validation.MAX_NAME_CHARS:
        raise ids.not_found("project")
    return project_id


def lock_project(conn: Connection, project_id: str, caller: Caller, if_match: str | None) -> Row:
    """Lock a project and return it with its document. Raises Problem: 404 also for another owner's, 412 If-Match."""
    project = caller.require_visible(projects.lock(conn, project_id), "project")
    tags = [] if if_match is None else [tag.strip() for tag in if_match.split(",")]
    if if_match is not None and "*" not in tags and _etag(project["document"]) not in tags:
        raise Problem(412, "the document was changed: read it again and retry with its new ETag")
    return project


def project_response(status: int, fields: dict[str, Any]) -> Response:
    """Return a project with its ETag, which does not depend on `imageUrls`."""
    return problems.json_response(status, fields, {"ETag": _etag(fields["document"])})


def _etag(document: dict[str, Any]) -> str:
    return f'"{scene_documents.digest_document(document)}"'


def read_project(conn: Connection, project_id: str, caller: Caller, base: str) -> dict[str, Any]:
    """Return the fields of a project's response. Raises Problem: 404 also for another owner's."""
    row = caller.require_visible(projects.get_with_image_urls(conn, project_id, base), "project")
    counts = progress.get_progress(conn, project_id)
    unplaced = [
        {**{name: file[name] for name in ("render_id", "idx", "scene")}, "url": urls.build_asset_url(base, file["key"])}
        for file in row["unplaced"]
    ]
    return {
        "project_id": row["id"],
        "owner": row["owner"],
        "status": counts["status"],
        "image_upload_progress": counts["image_upload_progress"],
        "progress": {name: counts[name] for name in _COUNTS},
        "failures": progress.list_failed_jobs(conn, project_id),
        "generated_output": {"scenes": scene_documents.list_scenes_with_image_urls(row["document"])},
        "document": row["document"],
        "unplaced": unplaced,
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
    }
