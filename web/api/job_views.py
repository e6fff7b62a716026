"""Response models of jobs and their events."""

from typing import Literal
from uuid import UUID

from pydantic import ConfigDict, Field

from moorage.model import JobState
from web.api.responses import JobSummaryView, ResultView, Timestamp, Variant, View


class ChainEntryView(View):
    """An entry of a fallback chain, without its input."""

    provider: str
    model: str
    seconds: float


class StepView(View):
    """A row that a worker works on: its state, and the category and the reason of its failure."""

    state: str
    type: str | None
    message: str | None
    ended_at: Timestamp | None


class PredictionView(StepView):
    prediction_id: UUID
    entry: int | None
    provider: str
    external_id: str | None
    model: str | None
    raw_status: str | None
    created_at: Timestamp
    submitted_at: Timestamp | None
    deadline_at: Timestamp
    cancel_reason: str | None


class OutputView(StepView):
    """A file that the provider reported; not its source URL, which may contain the provider's signature."""

    output_id: UUID
    idx: int
    path: str
    attempt: int
    run_at: Timestamp | None
    expires_at: Timestamp | None


class JobErrorView(View):
    job_id: UUID
    type: str | None
    message: str | None
    prediction_id: UUID
    retryable: bool
    subject: Literal["output", "prediction"]
    subject_id: UUID
    idx: int | None
    path: str | None
    dead_letter_id: UUID | None


class JobView(JobSummaryView):
    job_id: UUID
    category: str | None
    deadline_at: Timestamp
    reopened: int
    render_id: UUID | None


class ListedJob(JobView):
    outputs: int
    kept: int


class Job(JobView, ResultView):
    placeholder: bool
    chain: list[ChainEntryView]
    policy: Literal["keep", "discard"]
    variants_asked: int | None
    published_at: Timestamp | None
    variants_created: int
    variants: list[Variant]
    predictions: list[PredictionView]
    outputs: list[OutputView]
    errors: list[JobErrorView]


class Event(View):
    id: int
    subject: str
    subject_id: UUID
    from_state: str | None
    to_state: str
    reason: str | None
    actor: str
    at: Timestamp


class EventPage(View):
    job_id: UUID
    events: list[Event]
    next: int | None


class AcceptedJob(View):
    model_config = ConfigDict(json_schema_serialization_defaults_required=False)

    job_id: UUID
    prediction_id: UUID
    state: JobState
    is_new: bool


class NewJob(AcceptedJob):
    checked: bool = Field(True, description="of a new job: every input was checked against its model's schema")
    unchecked: list[str] = Field([], description="of a new job: why inputs were not checked")


class RegisteredPrediction(AcceptedJob):
    provider: str
    external_id: str


class JobStateView(View):
    job_id: UUID
    state: JobState
    was: JobState


class RetryView(JobStateView):
    replayed: int
