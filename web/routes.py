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
    dead_letters,
    events,
    job_actions,
    job_create,
    jobs,
    models,
    predictions,
    projects,
    renders,
    scenes,
    session,
    tokens,
    uploads,
)
from web.api.job_schema import JobCreate
from web.api.predictions import PredictionCreate
from web.api.project_schema import ProjectBody, SceneBody, SceneOrderBody
from web.api.tokens import OwnerTokenCreate, TokenCreate
from web.http import permissions, query
from web.http.permissions import Level
from web.http.query import Query

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path, relative to a prefix."""

    operation_id: str  # in the OpenAPI document; stable for generated clients
    min_level: Level
    method: str
    path: str
    endpoint: Endpoint
    responses: Mapping[int, str]
    query_model: type[Query] | None = None
    body_model: type[BaseModel] | None = None
    body_media_types: tuple[str, ...] = ()  # of a body that is a file, or a form with a file
    accepts_form: bool = False  # the body may be a form with files


PREFIXES: Final = ("/v1", "/api/v1")
OPEN, OWNER, APPLICATION, ADMIN = Level
_ASSET: Final = "/assets/renders/{render_id}/{name}"
_ASSET_RESPONSES: Final = {200: "the file", 206: "the requested range", 302: "the file in storage", 304: "not modified"}
_CORS: Final = {204: "the methods and headers that other origins may use"}
_DELETED: Final = {204: "deleted, now or before"}
_FILES: Final = ("image/*", "video/*", "application/octet-stream", "multipart/form-data")
_JOB: Final = {202: "accepted", 200: "the existing job of this Idempotency-Key"}
_PUT: Final = {201: "created", 200: "document replaced"}
_REGISTERED: Final = {201: "registered", 200: "already registered, unchanged"}
_SCENES: Final = "/projects/{project_id}/scenes"
_SCHEMA: Final = "/models/{owner}/{name}/schema"
_UPLOADED: Final = {201: "the upload, validated, without metadata"}

# registerPrediction requires an application: an owner could claim another owner's prediction.
# fmt: off
OPERATIONS: Final = (
    Operation("registerPrediction", APPLICATION, "POST", "/predictions", predictions.register_prediction, _REGISTERED,
              body_model=PredictionCreate),
    Operation("createJob", OWNER, "POST", "/jobs", job_create.create_job, _JOB, body_model=JobCreate,
              accepts_form=True),
    Operation("listJobs", OWNER, "GET", "/jobs", jobs.list_jobs, {200: "a page of jobs"}, query.JobQuery),
    Operation("getJob", OWNER, "GET", "/jobs/{job_id}", jobs.get_job, {200: "the job"}),
    Operation("listJobEvents", OWNER, "GET", "/jobs/{job_id}/events", jobs.list_job_events, {200: "a page of events"},
              query.EventPageQuery),
    Operation("cancelJob", OWNER, "POST", "/jobs/{job_id}/cancel", job_actions.cancel_job,
              {200: "cancelled, now or before"}),
    Operation("retryJob", OWNER, "POST", "/jobs/{job_id}/retry", job_actions.retry_job, {202: "retried"}),
    Operation("listModels", OWNER, "GET", "/models", models.list_models, {200: "models by provider"}, query.ModelQuery),
    Operation("getModelSchema", OWNER, "GET", _SCHEMA, models.get_model_schema, {200: "the schema"}, query.SchemaQuery),
    Operation("listRenders", OWNER, "GET", "/renders", renders.list_renders, {200: "a page of renders"},
              query.RenderQuery),
    Operation("getRender", OWNER, "GET", "/renders/{render_id}", renders.get_render, {200: "the render"}),
    Operation("deleteRender", OWNER, "DELETE", "/renders/{render_id}", renders.delete_render, _DELETED),
    Operation("createUpload", OWNER, "POST", "/uploads", uploads.create_upload, _UPLOADED, query.UploadQuery,
              body_media_types=_FILES),
    Operation("getUpload", OWNER, "GET", "/uploads/{upload_id}", uploads.get_upload,
              {200: "the upload with a signed URL"}),
    Operation("deleteUpload", OWNER, "DELETE", "/uploads/{upload_id}", uploads.delete_upload, _DELETED),
    Operation("getProject", OWNER, "GET", "/projects/{project_id}", projects.get_project, {200: "the project"}),
    Operation("putProject", OWNER, "PUT", "/projects/{project_id}", projects.put_project, _PUT, body_model=ProjectBody),
    Operation("addScene", OWNER, "POST", _SCENES, scenes.add_scene, {201: "the project with the scene"},
              body_model=SceneBody),
    Operation("reorderScenes", OWNER, "PATCH", _SCENES, scenes.reorder_scenes, {200: "the project in its new order"},
              body_model=SceneOrderBody),
    Operation("removeScene", OWNER, "DELETE", _SCENES + "/{scene}", scenes.remove_scene, {204: "removed"}),
    Operation("streamEvents", OWNER, "GET", "/events", events.stream_events, {200: "server-sent events"},
              query.StreamQuery),
    Operation("getSession", OWNER, "GET", "/session", session.get_session, {200: "the caller"}),
    Operation("createSession", OWNER, "POST", "/session", session.create_session, {204: "the cookie is set"}),
    Operation("deleteSession", OWNER, "DELETE", "/session", session.delete_session, {204: "the cookie is removed"}),
    Operation("createOwnerToken", APPLICATION, "POST", "/owner-tokens", tokens.create_owner_token, {201: "created"},
              body_model=OwnerTokenCreate),
    Operation("listTokens", ADMIN, "GET", "/tokens", tokens.list_tokens, {200: "all tokens"}),
    Operation("createToken", ADMIN, "POST", "/tokens", tokens.create_token, {201: "created"}, body_model=TokenCreate),
    Operation("revokeToken", ADMIN, "DELETE", "/tokens/{token_id}", tokens.revoke_token, {204: "revoked"}),
    Operation("getDeadLetter", ADMIN, "GET", "/dead-letters/{dead_letter_id}", dead_letters.get_dead_letter,
              {200: "the dead letter"}),
    Operation("getQuarantinedFile", OPEN, "GET", "/assets/quarantine/{output_id}", dead_letters.get_quarantined_file,
              {200: "the file, as an attachment"}, query.LinkQuery),
    Operation("getAsset", OPEN, "GET", _ASSET, assets.get_asset, _ASSET_RESPONSES),
    Operation("preflightAsset", OPEN, "OPTIONS", _ASSET, assets.preflight_asset, _CORS),
)
# fmt: on


def body_models() -> dict[str, type[BaseModel]]:
    return {operation.body_model.__name__: operation.body_model for operation in OPERATIONS if operation.body_model}


def is_public_path(path: str) -> bool:
    return path.startswith(tuple(prefix + assets.PREFIX for prefix in PREFIXES))


def build_routes(prefix: str) -> list[Route]:
    """Return one route per path with all its methods, so that a 405 lists all of them in Allow."""
    paths: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = operation
    return [Route(prefix + path, _dispatch_by_method(methods), methods=[*methods]) for path, methods in paths.items()]


def _dispatch_by_method(operations: dict[str, Operation]) -> Endpoint:
    async def dispatch(request: Request) -> Response:
        operation = operations["GET" if request.method == "HEAD" else request.method]
        permissions.require_level(permissions.get_caller(request), operation.min_level)
        return await operation.endpoint(request)

    return dispatch
