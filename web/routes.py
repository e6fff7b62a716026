"""The route table of the API: the source of both the routes and the OpenAPI document."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
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
    min_level: Level
    route: str  # method and path
    endpoint: Endpoint
    responses: Mapping[int, str]
    query_model: type[Query] | None = None
    body_model: type[BaseModel] | None = None
    body_media_types: tuple[str, ...] = ()  # of a body that is a file, or a form with a file
    accepts_form: bool = False  # the body may be a form with files

    @property
    def method(self) -> str:
        return self.route.partition(" ")[0]

    @property
    def path(self) -> str:
        return self.route.partition(" ")[2]


OPEN, OWNER, APPLICATION, ADMIN = Level.OPEN, Level.OWNER, Level.APPLICATION, Level.ADMIN
_ASSET_PATH: Final = "/assets/renders/{render_id}/{name}"
_ASSET_RESPONSES: Final = {
    200: "the file",
    206: "the requested range",
    302: "the file in storage",
    304: "not modified",
}

OPERATIONS: Final = (
    # not for owners: an owner could claim another owner's prediction
    Operation(
        "registerPrediction",
        APPLICATION,
        "POST /predictions",
        predictions.register_prediction,
        {201: "registered", 200: "already registered, unchanged"},
        body_model=predictions.PredictionCreate,
    ),
    Operation(
        "createJob",
        OWNER,
        "POST /jobs",
        job_create.create_job,
        {202: "accepted", 200: "the existing job of this Idempotency-Key"},
        body_model=job_schema.JobCreate,
        accepts_form=True,
    ),
    Operation("listJobs", OWNER, "GET /jobs", jobs.list_jobs, {200: "a page of jobs"}, query.JobQuery),
    Operation("getJob", OWNER, "GET /jobs/{job_id}", jobs.get_job, {200: "the job"}),
    Operation(
        "listJobEvents",
        OWNER,
        "GET /jobs/{job_id}/events",
        jobs.list_job_events,
        {200: "a page of events"},
        query.EventPageQuery,
    ),
    Operation(
        "cancelJob", OWNER, "POST /jobs/{job_id}/cancel", job_actions.cancel_job, {200: "cancelled, now or before"}
    ),
    Operation("retryJob", OWNER, "POST /jobs/{job_id}/retry", job_actions.retry_job, {202: "retried"}),
    Operation("listModels", OWNER, "GET /models", models.list_models, {200: "models by provider"}, query.ModelQuery),
    Operation(
        "getModelSchema",
        OWNER,
        "GET /models/{owner}/{name}/schema",
        models.get_model_schema,
        {200: "the schema"},
        query.SchemaQuery,
    ),
    Operation(
        "listRenders", OWNER, "GET /renders", renders.list_renders, {200: "a page of renders"}, query.RenderQuery
    ),
    Operation("getRender", OWNER, "GET /renders/{render_id}", renders.get_render, {200: "the render"}),
    Operation(
        "deleteRender", OWNER, "DELETE /renders/{render_id}", renders.delete_render, {204: "deleted, now or before"}
    ),
    Operation(
        "createUpload",
        OWNER,
        "POST /uploads",
        uploads.create_upload,
        {201: "the upload, validated, without metadata"},
        query.UploadQuery,
        body_media_types=("image/*", "video/*", "application/octet-stream", "multipart/form-data"),
    ),
    Operation(
        "getUpload", OWNER, "GET /uploads/{upload_id}", uploads.get_upload, {200: "the upload with a signed URL"}
    ),
    Operation(
        "deleteUpload", OWNER, "DELETE /uploads/{upload_id}", uploads.delete_upload, {204: "deleted, now or before"}
    ),
    Operation("getProject", OWNER, "GET /projects/{project_id}", projects.get_project, {200: "the project"}),
    Operation(
        "putProject",
        OWNER,
        "PUT /projects/{project_id}",
        projects.put_project,
        {201: "created", 200: "document replaced"},
        body_model=project_schema.ProjectBody,
    ),
    Operation(
        "addScene",
        OWNER,
        "POST /projects/{project_id}/scenes",
        scenes.add_scene,
        {201: "the project with the scene"},
        body_model=project_schema.SceneBody,
    ),
    Operation(
        "reorderScenes",
        OWNER,
        "PATCH /projects/{project_id}/scenes",
        scenes.reorder_scenes,
        {200: "the project in its new order"},
        body_model=project_schema.SceneOrderBody,
    ),
    Operation(
        "removeScene", OWNER, "DELETE /projects/{project_id}/scenes/{scene}", scenes.remove_scene, {204: "removed"}
    ),
    Operation(
        "streamEvents", OWNER, "GET /events", events.stream_events, {200: "server-sent events"}, query.StreamQuery
    ),
    Operation("getSession", OWNER, "GET /session", session.get_session, {200: "the caller"}),
    Operation("createSession", OWNER, "POST /session", session.create_session, {204: "the cookie is set"}),
    Operation("deleteSession", OWNER, "DELETE /session", session.delete_session, {204: "the cookie is removed"}),
    Operation(
        "createOwnerToken",
        APPLICATION,
        "POST /owner-tokens",
        tokens.create_owner_token,
        {201: "created"},
        body_model=tokens.OwnerTokenCreate,
    ),
    Operation("listTokens", ADMIN, "GET /tokens", tokens.list_tokens, {200: "all tokens"}),
    Operation(
        "createToken", ADMIN, "POST /tokens", tokens.create_token, {201: "created"}, body_model=tokens.TokenCreate
    ),
    Operation("revokeToken", ADMIN, "DELETE /tokens/{token_id}", tokens.revoke_token, {204: "revoked"}),
    Operation("getAsset", OPEN, f"GET {_ASSET_PATH}", assets.get_asset, _ASSET_RESPONSES),
    Operation(
        "preflightAsset",
        OPEN,
        f"OPTIONS {_ASSET_PATH}",
        assets.preflight_asset,
        {204: "the methods and headers that other origins may use"},
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
