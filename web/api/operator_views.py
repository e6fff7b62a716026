"""Response models of what operators read and do."""

from typing import Literal
from uuid import UUID

from moorage.model import DeliveryState, MediaKind, NotificationState, OutputState, PredictionState
from web.api.responses import DeadLetterSummaryView, Record, Timestamp, View


class ProblemView(View):
    """What is wrong, and what to do; `runbook` is an anchor of docs/runbook.md."""

    code: str
    severity: Literal["critical", "warning"]
    text: str
    remedy: str
    runbook: str
    target: str | None


class EndedView(View):
    total: int
    unsuccessful: int
    webhook: int
    poll: int


class ProviderStatusView(View):
    provider: str
    takes_webhooks: bool
    can_poll: bool
    takes_orders: bool
    planned: int
    at_work: int
    at_once: int
    last_webhook_at: Timestamp | None
    ended_1h: EndedView
    new: int | None
    unmatched: int | None


class StatusView(View):
    """What `moorage status --json` prints. Null: it could not be read."""

    at: Timestamp | None = None
    problems: list[ProblemView]
    postgresql: str
    broker: str
    storage: str
    queues: dict[str, int] | None
    workers: list[str] | None
    worker_queues: dict[str, list[str]] | None
    pools: dict[str, int]
    consumers: dict[str, int] | None
    providers: list[ProviderStatusView] | None = None
    deliveries: dict[str, int] | None = None
    jobs: dict[str, int] | None = None
    predictions: dict[str, int] | None = None
    outputs: dict[str, int] | None = None
    notifications: dict[str, int] | None = None
    oldest_due_seconds: dict[str, float] | None = None
    soonest_expiry_seconds: float | None = None
    keep_stalled_seconds: float | None = None
    storage_failing_seconds: float | None = None
    erasure_open_seconds: float | None = None
    failing: list[Record] | None = None
    webhooks_refused: list[Record] | None = None
    billing_refused: list[Record] | None = None
    leases: list[Record] | None = None
    sweeps: list[Record] | None = None
    dead_letters: list[Record] | None = None
    pauses: list[Record] | None = None
    breakers: list[Record] | None = None
    storage_use: list[Record] | None = None
    lock_holders: list[Record] | None = None
    locked: list[str] | None = None


class RecordReportView(View):
    """What `moorage show --json` prints."""

    subject: str
    id: UUID
    at: Timestamp
    facts: Record
    predictions: list[Record]
    outputs: list[Record]
    deliveries: list[Record]
    notifications: list[Record]
    dead_letters: list[Record]
    events: list[Record]
    next: list[str]


class _WorkView(View):
    owner: str | None
    project_id: str | None
    job_id: UUID | None
    reason: str | None
    run_at: Timestamp | None
    attempt: int
    leased_by: str | None
    leased_until: Timestamp | None
    ended_at: Timestamp | None


class ListedDeliveryView(_WorkView):
    delivery_id: UUID
    provider: str
    webhook_id: str
    external_id: str | None
    prediction_id: UUID | None
    state: DeliveryState
    received_at: Timestamp
    bytes: int | None
    unmatched_until: Timestamp | None


class ListedPredictionView(_WorkView):
    prediction_id: UUID
    provider: str
    external_id: str | None
    model: str | None
    state: PredictionState
    category: str | None
    raw_status: str | None
    created_at: Timestamp
    deadline_at: Timestamp
    polls: int
    ended_by: str | None


class ListedOutputView(_WorkView):
    output_id: UUID
    prediction_id: UUID
    provider: str
    idx: int
    path: str
    state: OutputState
    category: str | None
    created_at: Timestamp
    expires_at: Timestamp | None
    media: MediaKind | None
    format: str | None
    bytes: int | None
    key: str | None


class ListedNotificationView(_WorkView):
    notification_id: UUID
    event_id: int
    type: str
    state: NotificationState
    category: str | None
    created_at: Timestamp


class ListedDeadLetterView(DeadLetterSummaryView):
    owner: str | None
    project_id: str | None


class RefusedView(View):
    dead_letter_id: UUID
    reason: str


class BulkView(View):
    """What one call did, or with `dry_run` would begin to do; `remaining` come after `next`."""

    dry_run: bool
    matched: int
    expiring: int
    expired: int
    done: int
    refused: list[RefusedView]
    remaining: int
    next: UUID | None


class PauseView(View):
    target: str
    paused_at: Timestamp
    paused_by: str
    reason: str | None
    outputs: int
    predictions: int
    expires_at: Timestamp | None


class ResumedView(View):
    target: str
    paused_at: Timestamp
    outputs: int
    predictions: int


class RecoveryView(View):
    """What the provider lists since then, and what was registered and will be polled: nothing with `dry_run`."""

    provider: str
    since: Timestamp
    dry_run: bool
    found: dict[str, int]
    first: list[Record]
    registered: int
    polled: int
    is_complete: bool


class ResentView(View):
    notification_id: UUID
    state: NotificationState
