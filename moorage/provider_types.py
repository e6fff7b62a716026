"""What moorage and a provider tell each other, as types: orders, verified deliveries, what became of a prediction."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

PredictionStatus = Literal["queued", "running", "succeeded", "failed", "cancelled", "unknown"]


@dataclass(frozen=True, slots=True)
class OutputFile:
    """
    One file named in a provider's answer.

    Args:
        path: where it stood, in document order of the raw text: "output", "output[2]", "output.images[0].url".
        url: its address, or None for a `data:` URI.
        data: the decoded bytes of a `data:` URI, or None.
        problem: why it must not be fetched ("host evil.example is not allowed ..."), or None.
    """

    path: str
    url: str | None = None
    data: bytes | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class PredictionReport:
    """
    What a provider's webhook or poll answer says of one prediction, in our words.

    `needs_fetch`: it tells of the end without its files or reasons; the whole answer is to be had by a poll. Never set
    in what a poll itself brings.
    """

    external_id: str
    status: PredictionStatus
    raw_status: str
    outputs: tuple[OutputFile, ...] = ()
    error: str | None = None
    data_removed: bool = False
    completed_at: datetime | None = None
    expires_at: datetime | None = None  # when the URLs die, where the answer says so
    model: str | None = None
    needs_fetch: bool = False


@dataclass(frozen=True, slots=True)
class ListedPrediction:
    """One prediction in a provider's list of what it made: enough to tell whether it is known, and whose it is."""

    external_id: str
    raw_status: str
    webhook: str | None = None  # where the provider was told to send it
    model: str | None = None


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """
    What a provider is asked to make.

    Args:
        webhook_url: where it is to tell us, with the single-use key in its query.
        input: as the model takes it; every reference to a file of ours is a signed URL by now.
        seconds: how long its entry of the chain is waited for; a synchronous provider is not heard longer.
    """

    prediction_id: UUID
    model: str
    input: Mapping[str, Any]
    webhook_url: str
    timeout_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class SubmitResult:
    """A provider took an order. `report`: it has answered with the files already (synchronous providers only)."""

    external_id: str
    report: PredictionReport | None = None


@dataclass(frozen=True, slots=True)
class VerifiedDelivery:
    """A delivery whose signature is right."""

    webhook_id: str | None  # the dialect's id; None: use the digest of the body
