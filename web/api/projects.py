"""GET and PUT /v1/projects/{project_id}: an application's document with image URLs per scene, and its progress."""

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Final, TypeVar

import psycopg
from fastapi import Header, Path, Response
from pydantic import AfterValidator, create_model, field_validator

from db import owner_limits, placements, progress, projects
from db.connection import Connection, Row
from moorage import scene_documents
from moorage.model import ProjectKey
from moorage.text import is_storable
from storage import urls
from web.api.responses import ListedProject, Project, page_model
from web.http import problems, query, validation
from web.http.json_body import BodyBytes, Json
from web.http.permissions import MAX_PROJECTS, Caller, Level
from web.http.problems import Problem
from web.http.query import Filters, OwnerQuery, ProjectQuery
from web.http.router import Router
from web.http.validation import Body, Name, invalid_field
from web.services.context import AnyCaller, AppContext, Context

T = TypeVar("T")


def _check_storable(text: str) -> str:
    if not is_storable(text):
        raise ValueError("cannot be stored")
    return text


ProjectId = Annotated[str, Path(max_length=validation.MAX_NAME_CHARS), AfterValidator(_check_storable)]
IfMatch = Annotated[
    str | None, Header(alias="If-Match", description="ETags of the document, of which one must match", examples=["*"])
]

router: Final = Router(prefix="/projects", tags=["projects"])
_Created: Final = create_model("_Created", __base__=Body, project_id=(validation.ProjectId, ...))


class ProjectBody(Body):
    """A project's owner, and the application's document: any object whose `scenes` is a list of objects."""

    owner: Name | None = None  # not with an owner token, which determines it
    document: dict[str, Any]

    @field_validator("document")
    @classmethod
    def _check_scenes(cls, document: dict[str, Any]) -> dict[str, Any]:
        scenes = document.get("scenes", [])
        if not isinstance(scenes, list) or not all(isinstance(scene, dict) for scene in scenes):
            raise ValueError("has scenes that are not a list of objects")
        if len(scenes) > scene_documents.MAX_SCENES:
            raise ValueError(f"has {len(scenes)} scenes, more than {scene_documents.MAX_SCENES}")
        return document


@router.get(
    "",
    response_model=page_model("ProjectPage", str, projects=ListedProject),
    response_description="a page of an owner's projects",
)
async def list_projects(params: Filters[ProjectQuery], caller: AnyCaller, ctx: Context) -> Row:
    """Return a page of an owner's projects, by id."""
    owner = caller.require_owner(params.owner)
    rows = await ctx.database.transaction(lambda conn: projects.list_page(conn, owner, params.after, params.limit + 1))
    page, next_id = query.split_page(rows, params.limit)
    return {"projects": [{"project_id": row["id"], **row} for row in page], "next": next_id}


@router.get("/{project_id}", response_description="the project")
async def get_project(
    project_id: ProjectId, response: Response, params: Filters[OwnerQuery], caller: AnyCaller, ctx: Context
) -> Project:
    """Return a project with its document and progress."""

    def read(conn: Connection) -> Project:
        return read_project(conn, find_project(conn, project_id, caller, params.owner), caller, ctx)

    return add_etag(response, await ctx.database.read(read))


@router.delete("/{project_id}", status_code=204, response_description="deleted")
async def delete_project(project_id: ProjectId, params: Filters[OwnerQuery], caller: AnyCaller, ctx: Context) -> None:
    """Delete a project with its document; its renders remain. 409 while a job of it is not settled."""

    def delete(conn: Connection) -> bool | None:
        return projects.delete(conn, find_project(conn, project_id, caller, params.owner))

    is_deleted = await ctx.database.transaction(delete)
    if is_deleted is None:
        raise problems.not_found("project")
    if not is_deleted:
        raise Problem(409, "a job of the project is not settled: cancel it, or delete the project when it is")


@router.put(
    "/{project_id}",
    status_code=201,
    response_description="created",
    responses={200: {"description": "document replaced", "model": Project}},
)
async def put_project(
    project_id: str,
    response: Response,
    caller: AnyCaller,
    ctx: Context,
    body: Json[ProjectBody],
    data: BodyBytes,
    if_match: IfMatch = None,
) -> Project:
    """Create a project or replace its document; `imageUrls` in the document are computed, not stored."""
    validation.parse_body({"project_id": project_id}, _Created)
    key, text = ProjectKey(caller.require_owner(body.owner), project_id), data.decode()

    def write(conn: Connection) -> tuple[int, Project]:
        owner_limits.lock(conn, key.owner)
        is_new = if_match is None and projects.add(conn, key, text)
        if is_new and caller.level is Level.OWNER and projects.count(conn, key.owner) > MAX_PROJECTS:
            raise Problem(409, f"the owner has {MAX_PROJECTS} projects already: delete some")
        project = lock_project(conn, key, if_match)
        if not is_new:
            projects.replace_document(conn, key, text)
            project = lock_project(conn, key, None)
        placements.update_image_urls(conn, project, ctx.asset_base)
        return 201 if is_new else 200, read_project(conn, key, caller, ctx)

    response.status_code, project = await write_document(ctx, write)
    return add_etag(response, project)


async def write_document(ctx: AppContext, work: Callable[[Connection], T]) -> T:
    """Run a transaction that writes a document. Raises Problem: 422 for JSON that PostgreSQL cannot store."""
    try:
        return await ctx.database.transaction(work)
    except psycopg.errors.UntranslatableCharacter as error:
        raise invalid_field("document", "contains a NUL character, which cannot be stored") from error
    except psycopg.DataError as error:
        raise invalid_field("document", f"cannot be stored: {str(error).splitlines()[0]}") from error


def find_project(conn: Connection, project_id: str, caller: Caller, owner: str | None) -> ProjectKey:
    """Return the caller's project, or that of `owner`. Raises Problem: 404, 409 several owners and none named."""
    owner = caller.resolve_owner(owner)
    if owner is not None:
        return ProjectKey(owner, project_id)
    owners = projects.list_owners(conn, project_id)
    if len(owners) > 1:
        raise Problem(409, f"several owners have a project of this id: add ?owner= ({', '.join(owners)})")
    if not owners:
        raise problems.not_found("project")
    return ProjectKey(owners[0], project_id)


def lock_project(conn: Connection, key: ProjectKey, if_match: str | None) -> Row:
    """Lock a project and return it with its document. Raises Problem: 404, 412 If-Match."""
    project = projects.lock(conn, key)
    if project is None:
        raise problems.not_found("project")
    tags = [] if if_match is None else [tag.strip() for tag in if_match.split(",")]
    if if_match is not None and "*" not in tags and _etag(project["document"]) not in tags:
        raise Problem(412, "the document was changed: read it again and retry with its new ETag")
    return project


def add_etag(response: Response, project: Project) -> Project:
    """Set the ETag of a response with a project, which does not depend on `imageUrls`."""
    response.headers["ETag"] = _etag(project.document)
    return project


def _etag(document: dict[str, Any]) -> str:
    return f'"{scene_documents.digest_document(document)}"'


def read_project(conn: Connection, key: ProjectKey, caller: Caller, ctx: AppContext) -> Project:
    """Return a project. Raises Problem: 404."""
    row = projects.get_with_image_urls(conn, key, ctx.asset_base)
    if row is None:
        raise problems.not_found("project")
    failures, show = progress.list_failed_jobs(conn, key), partial(ctx.visibility.filter_reason, caller.level)
    counts = progress.get_progress(conn, key)
    fields = {
        **row,
        "project_id": key.id,
        "status": counts["status"],
        "image_upload_progress": counts["image_upload_progress"],
        "progress": counts,
        "failures": [show(row) for row in failures],
        "generated_output": {"scenes": scene_documents.list_scenes_with_image_urls(row["document"])},
        "unplaced": [{**file, "url": urls.build_asset_url(ctx.asset_base, file["key"])} for file in row["unplaced"]],
    }
    return Project.model_validate(fields)
