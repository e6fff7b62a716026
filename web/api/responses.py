"""Response models: what the API returns, and the schemas of it in the OpenAPI document."""

import json
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, WithJsonSchema, create_model

from moorage.model import JobState, MediaKind
from moorage.owner_tokens import Scope

Timestamp = Annotated[
    datetime,
    PlainSerializer(datetime.isoformat, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time"}, mode="serialization"),
]
SceneRef = str | int | float | None
Fact = str | int | float | bool | None


def _flatten(value: Any) -> Any:
    """Return a nested value as JSON text, an id or a time as text, so that every fact has a type."""
    if isinstance(value, UUID | datetime):
        return value.isoformat() if isinstance(value, datetime) else str(value)
    items = value if isinstance(value, list) else [value]
    return json.dumps(value, default=str) if any(isinstance(item, dict | list) for item in items) else value


FactValue = Annotated[Fact | list[Fact], BeforeValidator(_flatten)]
Record = dict[str, FactValue]  # a row, as its columns


def _replace_surrogates(value: Any) -> Any:
    """Return a provider's JSON with "?" for lone surrogates, which UTF-8 does not have."""
    return json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))


class View(BaseModel):
    """A response: of a row, the columns that are fields."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_serialization_defaults_required=True,
        json_schema_extra={"additionalProperties": False},
    )


def page_model(name: str, next_type: Any = UUID, **lists: type[View]) -> type[View]:
    """Return the model of a page: a list of rows, and `next` for the page after it, null on the last one."""
    fields: dict[str, Any] = {field: list[row] for field, row in lists.items()}  # type: ignore[valid-type]
    return create_model(name, __base__=View, **fields, next=next_type | None)


class StoredFile(View):
    media: MediaKind
    content_type: str
    bytes: int
    sha256: str
    width_px: int | None
    height_px: int | None
    duration_s: float | None
    url: str


class Variant(StoredFile):
    """A published file."""

    idx: int
    is_cover: bool
    frames: int | None
    thumb_width_px: int | None
    thumb_height_px: int | None
    thumb_missing: str | None
    color: str | None
    is_placeholder: bool
    thumb_url: str | None


class JobSummaryView(View):
    owner: str
    kind: Literal["image", "video", "mixed"]
    state: JobState
    reason: str | None
    project_id: str | None
    created_at: Timestamp
    settled_at: Timestamp | None


class ResultView(JobSummaryView):
    """What a job generates, and where its files belong."""

    mode: str | None
    room_type: str | None
    style: str | None
    prompt: str | None
    scene: SceneRef
    metadata: dict[str, str]


class Render(ResultView):
    render_id: UUID
    cover_idx: int | None
    title: str | None
    favourite: bool
    published_at: Timestamp
    variants: list[Variant]


class RefusedRequest(View):
    id: UUID
    status: int
    message: str


class BulkResult(View):
    changed: list[UUID] = Field(description="done, now or before")
    refused: list[RefusedRequest]


class ModelDescription(View):
    provider: str
    name: str
    description: str | None
    kind: str
    accepts: list[str] | None
    picture_field: str | None


class UnavailableProvider(View):
    provider: str
    message: str


class ModelPage(View):
    models: list[ModelDescription]
    unavailable: list[UnavailableProvider]


class ModelSchema(View):
    provider: str
    model: str
    schema_: Annotated[dict[str, Any], BeforeValidator(_replace_surrogates)] = Field(alias="schema")


class Upload(StoredFile):
    upload_id: UUID
    owner: str
    format: str
    created_at: Timestamp
    url_seconds: int


class SceneUrls(View):
    id: Annotated[SceneRef, BeforeValidator(lambda value: value if type(value) in (str, int, float) else None)]
    index: str | int | float
    imageUrls: list[str]  # noqa: N815  # as in the application's document


class GeneratedOutput(View):
    scenes: list[SceneUrls]


class ProjectCounts(View):
    jobs: int
    settled: int
    failed: int
    placeholders: int
    files_asked: int
    files_kept: int
    files_failed: int


class FailedJob(View):
    job_id: UUID
    scene: SceneRef
    state: JobState
    category: str | None
    reason: str | None
    settled_at: Timestamp


class ListedProject(View):
    project_id: str
    owner: str
    status: str
    created_at: Timestamp
    updated_at: Timestamp


class UnplacedFile(View):
    render_id: UUID
    idx: int
    scene: SceneRef
    url: str


class Project(View):
    project_id: str
    owner: str
    status: str
    image_upload_progress: int
    progress: ProjectCounts
    failures: list[FailedJob]
    generated_output: GeneratedOutput
    document: dict[str, Any]
    unplaced: list[UnplacedFile] = Field(
        description="the first 100 files without a scene; GET /v1/renders?project_id= lists all files of a project"
    )
    created_at: Timestamp
    updated_at: Timestamp


class SessionView(View):
    level: Literal["owner", "application", "viewer", "admin"]
    owner: str | None
    scopes: list[Scope] | None = Field(description="of an owner token; null: everything that its level permits")
    expires_at: Timestamp | None


class LimitedUse(View):
    used: int
    limit: int | None


class UsageView(View):
    owner: str
    in_flight: LimitedUse
    open_jobs: LimitedUse
    jobs_per_hour: LimitedUse
    stored_bytes: LimitedUse


class OwnerToken(View):
    token: str
    token_id: UUID
    owner: str
    scopes: list[Scope]
    expires_at: Timestamp


class Token(View):
    token_id: UUID
    name: str
    role: Literal["application", "viewer", "admin"]
    created_at: Timestamp
    revoked_at: Timestamp | None


class NewToken(Token):
    token: str


class TokenPage(View):
    tokens: list[Token]


class QuarantinedFile(View):
    bytes: int
    sha256: str
    declared_type: str | None
    quarantined_at: Timestamp
    url: str | None  # null at level viewer, and without an API token to sign it
    url_seconds: int


class DeadLetterSummaryView(View):
    dead_letter_id: UUID
    subject: str
    subject_id: UUID
    job_id: UUID | None
    provider: str | None
    step: str
    category: str
    error: str
    reason: str
    retryable: bool
    state: Literal["open", "replayed", "discarded"]
    created_at: Timestamp
    closed_at: Timestamp | None
    closed_by: str | None
    acknowledged_at: Timestamp | None
    acknowledged_by: str | None
    note: str | None


class DeadLetterView(DeadLetterSummaryView):
    facts: dict[str, FactValue]
    quarantine: QuarantinedFile | None
