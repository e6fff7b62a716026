"""The route table of the API: the source of both the routes and the OpenAPI document."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from web.api import (
    assets,
    events,
    job_actions,
    job_create,
    job_schema,
    jobs,
    models,
    predictions,
    project_schema,
    projects,
    renders,
    scenes,
    session,
    tokens,
    uploads,
)
from web.http import permissions, query
from web.http.permissions import Level
from web.http.query import Query

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path, relative to a prefix."""

    operation_id: str  # in the OpenAPI document; stable for generated clients
    method: str
    path: str
    endpoint: Endpoint
    responses: Mapping[int, str]
    query_model: type[Query] | None = None
    body_model: type[BaseModel] | None = None
    body_media_types: tuple[str, ...] = ()  # of a body that is a file, or a form with a file
    accepts_form: bool = False  # the body may be a form with files
    min_level: Level = field(kw_only=True)  # no default: every operation names it


_ASSET_PATH: Final = "/assets/renders/{render_id}/{name}"
_ASSET_RESPONSES: Final = {
    200: "the file",
    206: "the requested range",
    302: "the file in storage",
    304: "not modified",
}

OPERATIONS: Final = (
    Operation(
        "registerPrediction",
        "POST",
        "/predictions",
        predictions.register_prediction,
        {201: "registered", 200: "already registered, unchanged"},
        body_model=predictions.PredictionCreate,
        min_level=Level.APPLICATION,  # an owner could claim another owner's prediction
    ),
    Operation(
        "createJob",
        "POST",
        "/jobs",
        job_create.create_job,
        {202: "accepted", 200: "the existing job of this Idempotency-Key"},
        body_model=job_schema.JobCreate,
        accepts_form=True,
        min_level=Level.OWNER,
    ),
    Operation(
        "listJobs", "GET", "/jobs", jobs.list_jobs, {200: "a page of jobs"}, query.JobQuery, min_level=Level.OWNER
    ),
    Operation("getJob", "GET", "/jobs/{job_id}", jobs.get_job, {200: "the job"}, min_level=Level.OWNER),
    Operation(
        "listJobEvents",
        "GET",
        "/jobs/{job_id}/events",
        jobs.list_job_events,
        {200: "a page of events"},
        query.EventPageQuery,
        min_level=Level.OWNER,
    ),
    Operation(
        "cancelJob",
        "POST",
        "/jobs/{job_id}/cancel",
        job_actions.cancel_job,
        {200: "cancelled, now or before"},
        min_level=Level.OWNER,
    ),
    Operation(
        "retryJob",
        "POST",
        "/jobs/{job_id}/retry",
        job_actions.retry_job,
        {202: "retried"},
        min_level=Level.OWNER,
    ),
    Operation(
        "listModels",
        "GET",
        "/models",
        models.list_models,
        {200: "models by provider"},
        query.ModelQuery,
        min_level=Level.OWNER,
    ),
    Operation(
        "getModelSchema",
        "GET",
        "/models/{owner}/{name}/schema",
        models.get_model_schema,
        {200: "the schema"},
        query.SchemaQuery,
        min_level=Level.OWNER,
    ),
    Operation(
        "listRenders",
        "GET",
        "/renders",
        renders.list_renders,
        {200: "a page of renders"},
        query.RenderQuery,
        min_level=Level.OWNER,
    ),
    Operation(
        "getRender", "GET", "/renders/{render_id}", renders.get_render, {200: "the render"}, min_level=Level.OWNER
    ),
    Operation(
        "deleteRender",
        "DELETE",
        "/renders/{render_id}",
        renders.delete_render,
        {204: "deleted, now or before"},
        min_level=Level.OWNER,
    ),
    Operation(
        "createUpload",
        "POST",
        "/uploads",
        uploads.create_upload,
        {201: "the upload, validated, without metadata"},
        query.UploadQuery,
        body_media_types=("image/*", "video/*", "application/octet-stream", "multipart/form-data"),
        min_level=Level.OWNER,
    ),
    Operation(
        "getUpload",
        "GET",
        "/uploads/{upload_id}",
        uploads.get_upload,
        {200: "the upload with a signed URL"},
        min_level=Level.OWNER,
    ),
    Operation(
        "deleteUpload",
        "DELETE",
        "/uploads/{upload_id}",
        uploads.delete_upload,
        {204: "deleted, now or before"},
        min_level=Level.OWNER,
    ),
    Operation(
        "getProject", "GET", "/projects/{project_id}", projects.get_project, {200: "the project"}, min_level=Level.OWNER
    ),
    Operation(
        "putProject",
        "PUT",
        "/projects/{project_id}",
        projects.put_project,
        {201: "created", 200: "document replaced"},
        body_model=project_schema.ProjectBody,
        min_level=Level.OWNER,
    ),
    Operation(
        "addScene",
        "POST",
        "/projects/{project_id}/scenes",
        scenes.add_scene,
        {201: "the project with the scene"},
        body_model=project_schema.SceneBody,
        min_level=Level.OWNER,
    ),
    Operation(
        "reorderScenes",
        "PATCH",
        "/projects/{project_id}/scenes",
        scenes.reorder_scenes,
        {200: "the project in its new order"},
        body_model=project_schema.SceneOrderBody,
        min_level=Level.OWNER,
    ),
    Operation(
        "removeScene",
        "DELETE",
        "/projects/{project_id}/scenes/{scene}",
        scenes.remove_scene,
        {204: "removed"},
        min_level=Level.OWNER,
    ),
    Operation(
        "streamEvents",
        "GET",
        "/events",
        events.stream_events,
        {200: "server-sent events"},
        query.StreamQuery,
        min_level=Level.OWNER,
    ),
    Operation("getSession", "GET", "/session", session.get_session, {200: "the caller"}, min_level=Level.OWNER),
    Operation(
        "createSession", "POST", "/session", session.create_session, {204: "the cookie is set"}, min_level=Level.OWNER
    ),
    Operation(
        "deleteSession",
        "DELETE",
        "/session",
        session.delete_session,
        {204: "the cookie is removed"},
        min_level=Level.OWNER,
    ),
    Operation(
        "createOwnerToken",
        "POST",
        "/owner-tokens",
        tokens.create_owner_token,
        {201: "created"},
        body_model=tokens.OwnerTokenCreate,
        min_level=Level.APPLICATION,
    ),
    Operation("listTokens", "GET", "/tokens", tokens.list_tokens, {200: "all tokens"}, min_level=Level.ADMIN),
    Operation(
        "createToken",
        "POST",
        "/tokens",
        tokens.create_token,
        {201: "created"},
        body_model=tokens.TokenCreate,
        min_level=Level.ADMIN,
    ),
    Operation(
        "revokeToken", "DELETE", "/tokens/{token_id}", tokens.revoke_token, {204: "revoked"}, min_level=Level.ADMIN
    ),
    Operation("getAsset", "GET", _ASSET_PATH, assets.get_asset, _ASSET_RESPONSES, min_level=Level.OPEN),
    Operation(
        "preflightAsset",
        "OPTIONS",
        _ASSET_PATH,
        assets.preflight_asset,
        {204: "the methods and headers that other origins may use"},
        min_level=Level.OPEN,
    ),
)


PREFIXES: Final = ("/v1", "/api/v1")


def body_models() -> dict[str, type[BaseModel]]:
    """Return the models of all bodies, by schema name."""
    return {operation.body_model.__name__: operation.body_model for operation in OPERATIONS if operation.body_model}


def is_public_path(path: str) -> bool:
    """Return True if a path requires no token."""
    return path.startswith(tuple(prefix + assets.PREFIX for prefix in PREFIXES))


def build_routes(prefix: str) -> list[Route]:
    """Return one route per path with all its methods, so that a 405 lists all of them in Allow."""
    paths: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = operation
    return [
        Route(prefix + path, _dispatch_by_method(methods), methods=list(methods)) for path, methods in paths.items()
    ]


def _dispatch_by_method(operations: dict[str, Operation]) -> Endpoint:
    async def dispatch(request: Request) -> Response:
        operation = operations["GET" if request.method == "HEAD" else request.method]
        permissions.require_level(permissions.get_caller(request), operation.min_level)
        return await operation.endpoint(request)

    return dispatch
