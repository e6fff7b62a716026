"""Types of the provider interface: submissions, verified deliveries, prediction reports."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

PredictionStatus = Literal["queued", "running", "succeeded", "failed", "cancelled", "unknown"]


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file in a provider's response."""

    path: str  # its position in the JSON document: "output", "output[2]", "output.images[0].url"
    url: str | None = None  # None for a `data:` URI
    data: bytes | None = None  # the decoded bytes of a `data:` URI
    problem: str | None = None  # the reason why it must not be downloaded ("host evil.example is not allowed ...")
    object_key: str | None = None  # of the private bucket, where the bytes are
    is_foreign: bool = False  # on a host that is not the provider's: it does not make its job partial
    is_mention: bool = False  # named in the response, but no output; `problem` has the reason


@dataclass(frozen=True, slots=True)
class PredictionReport:
    """The status of one prediction, from a webhook or a poll."""

    external_id: str
    status: PredictionStatus
    raw_status: str
    outputs: tuple[OutputFile, ...] = ()
    mentions: tuple[OutputFile, ...] = ()  # files that the response names, but that are no outputs
    error: str | None = None
    data_removed: bool = False
    completed_at: datetime | None = None
    expires_at: datetime | None = None  # of the URLs, if the provider states it
    model: str | None = None
    prompt: str | None = None
    is_unverified: bool = False  # from a body that anybody could have sent: only its id is used
    needs_fetch: bool = False  # neither files nor a reason: a poll returns them; never set in the result of a poll


@dataclass(frozen=True, slots=True)
class ListedPrediction:
    external_id: str
    raw_status: str
    webhook: str | None = None  # URL that the submission named
    model: str | None = None


@dataclass(frozen=True, slots=True)
class InputFile:
    name: str
    content_type: str
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    prediction_id: UUID
    model: str
    input: Mapping[str, Any]  # references to stored files are replaced by signed URLs, or by an InputFile
    webhook_url: str | None  # contains the single-use key in its query; None: the result is polled
    timeout_seconds: float | None = None  # of its fallback entry; a synchronous provider must respond within it


@dataclass(frozen=True, slots=True)
class SubmitResult:
    """`report`: the result, from synchronous providers only."""

    external_id: str
    report: PredictionReport | None = None


@dataclass(frozen=True, slots=True)
class VerifiedDelivery:
    webhook_id: str | None  # the sender's id; None: use the digest of the body
