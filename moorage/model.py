"""Rows and the values that steps exchange, as frozen dataclasses without behaviour."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, BinaryIO, Literal, NamedTuple
from uuid import UUID

WorkTable = Literal["deliveries", "predictions", "outputs", "notifications"]
DeliveryState = Literal["new", "unmatched", "applied", "ignored", "dead"]
JobState = Literal["open", "keeping", "succeeded", "partial", "failed", "cancelled"]
PredictionState = Literal["planned", "submitting", "running", "abandoned", "succeeded", "failed", "cancelled", "lost"]
OutputState = Literal["waiting", "discarding", "kept", "dead", "discarded"]
DeadLetterState = Literal["open", "replayed", "discarded"]
NotificationState = Literal["waiting", "sent", "dead"]
SourceKind = Literal["url", "inline", "object"]
SceneRef = str | int | float
# generate is the submit step of synchronous providers, which take minutes to respond.
Step = Literal["ingest", "submit", "generate", "poll", "keep", "discard", "notify"]
Queue = Literal["quick", "keep", "sweeps"]

MediaKind = Literal["image", "video", "file"]  # file: everything that has no picture to show


@dataclass(frozen=True, slots=True)
class Delivery:
    id: UUID
    provider: str
    webhook_id: str
    received_at: datetime
    body: bytes | None
    state: DeliveryState
    external_id: str | None = None
    prediction_id: UUID | None = None
    unmatched_until: datetime | None = None
    key_sha256: str | None = None  # of the key in the URL of the request
    traceparent: str | None = None  # of the request, for the log


class ProjectKey(NamedTuple):
    """A project's id belongs to its owner: two owners may use the same one. As text "owner/id": an id has no slash."""

    owner: str
    id: str

    def __str__(self) -> str:
        return f"{self.owner}/{self.id}"

    @classmethod
    def parse(cls, text: str) -> "ProjectKey":
        owner, _, project_id = text.rpartition("/")
        return cls(owner, project_id)


@dataclass(frozen=True, slots=True)
class Job:
    id: UUID
    owner: str
    kind: str
    project_id: str | None
    scene: SceneRef | None
    partial: Literal["keep", "discard"]
    chosen_id: UUID | None
    state: JobState
    deadline_at: datetime
    reopened: int
    fallback_chain: list[dict[str, Any]] | None = None  # each as `FallbackEntry`
    placeholder: bool = False
    variants: int | None = None
    is_undescribed: bool = False  # registered, without a prompt

    @property
    def project(self) -> ProjectKey | None:
        return None if self.project_id is None else ProjectKey(self.owner, self.project_id)


@dataclass(frozen=True, slots=True)
class Prediction:
    id: UUID
    job_id: UUID
    seq: int
    provider: str
    external_id: str | None
    state: PredictionState
    created_at: datetime
    deadline_at: datetime
    output_until: datetime | None
    polls: int
    model: str | None = None
    entry: int | None = None
    key_sha256: str | None = None
    submitted_at: datetime | None = None
    cancel_reason: str | None = None
    was_without_files: bool = False  # its last report: a success that named no files
    is_announced: bool = False  # a webhook requested the poll
    # Read with a lock or an external id only.
    has_render: bool = False  # its job has a render, perhaps a deleted one
    has_others: bool = False  # its job has other predictions
    has_dead_letter: bool = False  # an open one


@dataclass(frozen=True, slots=True)
class Output:
    id: UUID
    job_id: UUID
    prediction_id: UUID
    provider: str
    external_id: str
    idx: int
    path: str
    source_kind: SourceKind
    source: str | None
    source_data: bytes | None = field(repr=False)
    expires_at: datetime | None
    refreshed_at: datetime | None
    state: OutputState
    key: str | None = None
    thumb_key: str | None = None
    model: str | None = None
    is_placeholder: bool = False
    quarantine_key: str | None = None
    quarantine_bytes: int | None = None
    quarantine_sha256: str | None = None
    quarantine_type: str | None = None  # content type that the server declared
    quarantined_at: datetime | None = None
    is_awaited: bool = False  # when it was claimed, its job waited for it and was not locked


@dataclass(frozen=True, slots=True)
class Lease:
    """A worker's claim on one row. `attempt` and `crashes` include this claim."""

    table: WorkTable
    row_id: UUID
    token: UUID
    leased_by: str
    claimed_at: datetime
    attempt: int
    crashes: int
    output: Output | None = field(default=None, repr=False)  # as claimed, for step keep
    delivery: Delivery | None = field(default=None, repr=False)  # as claimed, for step ingest

    @property
    def errors(self) -> int:
        """Failures recorded before this claim: attempts minus crashes (this claim counts in both)."""
        return self.attempt - self.crashes


@dataclass(frozen=True, slots=True)
class Wake:
    step: Step
    row_id: UUID


@dataclass(frozen=True, slots=True, kw_only=True)
class JobDescription:
    """What an application states about a job, whether moorage submits its predictions or not."""

    owner: str
    kind: str = "image"
    mode: str | None = None
    room_type: str | None = None
    style: str | None = None
    prompt: str | None = None
    partial: Literal["keep", "discard"] = "keep"
    project_id: str | None = None
    scene: SceneRef | None = None
    notify_url: str | None = None  # one of MOORAGE_NOTIFY_URL; None: the first
    metadata: Mapping[str, str] = field(default_factory=dict)  # the application's own, repeated in answers
    idempotency_key: str | None = None
    request_sha256: str | None = None  # of the request sent with that key


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration(JobDescription):
    """A prediction that the application submitted itself and registers with moorage."""

    provider: str
    external_id: str
    model: str | None = None
    deadline_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class FallbackEntry:
    provider: str
    model: str
    input: Mapping[str, Any]  # as the model accepts it, except for references to stored files
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRequest(JobDescription):
    fallback_chain: tuple[FallbackEntry, ...]
    deadline_seconds: float
    variants: int | None = None
    placeholder: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    id: UUID
    subject: str
    subject_id: UUID
    job_id: UUID | None
    provider: str | None
    step: str
    category: str
    error: str
    reason: str
    retryable: bool
    facts: Mapping[str, Any]
    state: str
    created_at: datetime
    closed_at: datetime | None
    closed_by: str | None
    acknowledged_at: datetime | None
    acknowledged_by: str | None
    note: str | None


@dataclass(frozen=True, slots=True)
class FetchedFile:
    """The bytes of an output in an unnamed temporary file, positioned at 0."""

    file: BinaryIO
    size_bytes: int
    sha256: str  # hex
    declared_type: str | None = None  # Content-Type of the response; never trusted
    declared_extension: str | None = None  # at the end of its address's path; never trusted


@dataclass(frozen=True, slots=True)
class Media:
    """The result of validation."""

    media: MediaKind
    format: str  # one of FORMATS
    content_type: str
    extension: str
    width_px: int | None = None  # after EXIF orientation, as the height
    height_px: int | None = None
    frames: int | None = None
    duration_s: float | None = None
    notes: str | None = None  # unreadable metadata that was ignored


@dataclass(frozen=True, slots=True)
class Thumbnail:
    data: bytes = field(repr=False)
    sha256: str
    width_px: int
    height_px: int
    color: str | None = None  # mean colour of the image: "#8a7f70"
    seconds: float = field(default=0.0, compare=False)  # that it took


@dataclass(frozen=True, slots=True)
class StoredOutput:
    media: Media
    bytes: int
    sha256: str
    key: str
    thumb: Thumbnail | None
    thumb_key: str | None
    thumb_missing: str | None
