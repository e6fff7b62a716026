"""Types of the provider interface: submissions, verified deliveries, prediction reports."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

PredictionStatus = Literal["queued", "running", "succeeded", "failed", "cancelled", "unknown"]


@dataclass(frozen=True, slots=True)
class OutputFile:
    """
    One file in a provider's response.

    Args:
        path: its position in the JSON document: "output", "output[2]", "output.images[0].url".
        url: None for a `data:` URI.
        data: the decoded bytes of a `data:` URI, or None.
        problem: the reason why it must not be downloaded ("host evil.example is not allowed ..."), or None.
    """

    path: str
    url: str | None = None
    data: bytes | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class PredictionReport:
    """
    The status of one prediction, from a webhook or a poll.

    `needs_fetch`: the report has neither files nor a reason; a poll returns them. Never set in the result of a poll.
    """

    external_id: str
    status: PredictionStatus
    raw_status: str
    outputs: tuple[OutputFile, ...] = ()
    error: str | None = None
    data_removed: bool = False
    completed_at: datetime | None = None
    expires_at: datetime | None = None  # of the URLs, if the provider states it
    model: str | None = None
    needs_fetch: bool = False


@dataclass(frozen=True, slots=True)
class ListedPrediction:
    """One prediction in a provider's list."""

    external_id: str
    raw_status: str
    webhook: str | None = None  # URL that the submission named
    model: str | None = None


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """
    Args:
        input: the model's input; references to stored files are replaced by signed URLs.
        webhook_url: contains the single-use key in its query.
        timeout_seconds: of its fallback entry; a synchronous provider must respond within it.
    """

    prediction_id: UUID
    model: str
    input: Mapping[str, Any]
    webhook_url: str
    timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class SubmitResult:
    """`report`: the result, from synchronous providers only."""

    external_id: str
    report: PredictionReport | None = None


@dataclass(frozen=True, slots=True)
class VerifiedDelivery:
    """A delivery with a valid signature."""

    webhook_id: str | None  # the sender's id; None: use the digest of the body
