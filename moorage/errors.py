"""Errors, typed by what the caller does next. Rows and dead letters carry their categories."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict, Unpack

from moorage.transitions import EventKind

Category = Literal[
    "DOWNLOAD_FAILED", "VALIDATION_FAILED", "STORAGE_FAILED", "DATABASE_FAILED", "PROVIDER_FAILED", "BILLING_FAILED",
    "TIMED_OUT", "UNKNOWN_PREDICTION", "NOTIFY_FAILED", "POISON", "INTERNAL",
]  # fmt: skip


class _Attributes(TypedDict, total=False):
    category: Category
    event_kind: EventKind
    is_internal: bool
    retryable: bool
    status: int


class MoorageError(Exception):
    """Base class. `facts`: measurements (sizes, limits, statuses), stored with the dead letter as JSON."""

    category: Category = "INTERNAL"  # stored with the row and the dead letter
    event_kind: EventKind = "attempt_failed"  # `events.kind` of a retry after this error
    is_internal: bool = False  # our own storage, database or disk failed; does not count toward the error limit
    retryable: bool = False  # a later replay of the dead letter may succeed
    status: int = 400  # of the response, if the request is refused
    retry_after: float | None  # in seconds

    def __init_subclass__(cls, **attributes: Unpack[_Attributes]) -> None:
        for name, value in attributes.items():
            setattr(cls, name, value)

    def __init__(
        self,
        message: str,
        *,
        facts: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
        event_kind: EventKind | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.facts: dict[str, Any] = dict(facts or {})
        self.retry_after = retry_after
        self.event_kind = event_kind or self.event_kind
        self.status = status or self.status


class Transient(MoorageError, retryable=True):
    """May succeed later: retry after at least `retry_after` seconds."""


class Permanent(MoorageError):
    """Cannot succeed: dead-letter immediately."""


class Refused(MoorageError):
    """The request is rejected: return `status` (4xx), store nothing."""


class OwnerLimitReached(Refused, status=429):
    """A limit of MOORAGE_OWNER_LIMITS is reached: retry after at least `retry_after` seconds."""

    retry_after: float


class LeaseLost(MoorageError):
    """This worker no longer holds the lease of the row: stop and write nothing."""


class StepInterrupted(MoorageError, event_kind="worker_stopping"):
    """The worker is shutting down and the step cannot end in time: release the row, do not count the attempt."""


# --- webhooks


class BadSignature(Refused, status=401):
    """No current secret or key of the provider matches the signature, or its time stamp is stale."""


class KeysStale(Transient, category="PROVIDER_FAILED"):
    """The public keys must be fetched before the signature can be verified."""


class MalformedPayload(Permanent, category="VALIDATION_FAILED"):
    """A signed body or a provider's response that does not have the documented format."""


class UnrelatedEvent(MoorageError):
    """A correctly signed delivery that is not about a prediction: it is ignored."""


class UnknownPrediction(Permanent, category="UNKNOWN_PREDICTION", retryable=True):
    """A delivery for a prediction that was not registered in time."""


# --- providers


class ProviderUnavailable(Transient, category="PROVIDER_FAILED"):
    """The provider's API did not respond, or returned 429 or 5xx."""


class ProviderRefused(Permanent, category="PROVIDER_FAILED", retryable=True):
    """The provider's API rejected the request: invalid token, unknown prediction, invalid input."""


class NotSubmitted(ProviderUnavailable):
    """The submission certainly created no prediction (no connection, 425, 429): it may be repeated."""


class RateLimited(NotSubmitted):
    """The provider returned 429: resubmit after `retry_after`. Does not count as an error."""


class SubmitUncertain(ProviderUnavailable):
    """A submission was sent without a usable response: look the prediction up before submitting again."""


class BillingRefused(ProviderRefused, category="BILLING_FAILED"):
    """No credit or quota at the provider, or it does not accept the API token: an operator must act."""


# --- downloads


class DownloadInterrupted(Transient, category="DOWNLOAD_FAILED", event_kind="source_interrupted"):
    """No connection, timeout, 408, 425, 429, 5xx, or a body shorter than announced."""


class OutputGone(Permanent, category="DOWNLOAD_FAILED", retryable=True):
    """The server returned 401, 403, 404 or 410: the file is deleted or its URL expired. Request a fresh URL once."""


class DownloadRefused(Permanent, category="DOWNLOAD_FAILED"):
    """The download is not allowed: private address, unlisted host, file too large, too many redirects, bad URL."""


class FileTooLarge(DownloadRefused):
    """The file exceeds the byte limit of its kind: nothing of it is stored."""


# --- validation


class InvalidMedia(Permanent, category="VALIDATION_FAILED"):
    """The file is not a complete image or video of an accepted format within the limits."""


# --- notifications


class NotificationFailed(Transient, category="NOTIFY_FAILED"):
    """The application did not return 2xx to a notification in time."""


class NotificationRefused(Permanent, category="NOTIFY_FAILED", retryable=True):
    """The application returned 410, or MOORAGE_NOTIFY_URL is not set."""


# --- own servers


class StorageUnavailable(Transient, category="STORAGE_FAILED", event_kind="storage_failed", is_internal=True):
    """The object store did not respond, or returned 5xx or SlowDown."""


class StorageRefused(Transient, category="STORAGE_FAILED", event_kind="storage_failed", is_internal=True):
    """The object store rejected a request. Transient: wrong credentials must not dead-letter every file that is due."""


class ObjectRefused(Permanent, category="STORAGE_FAILED", retryable=True):
    """The object is larger than the store accepts."""


class ObjectAltered(Permanent, category="STORAGE_FAILED", retryable=True):
    """The object in quarantine has other bytes than were stored."""


class DatabaseUnavailable(Transient, category="DATABASE_FAILED", is_internal=True):
    """PostgreSQL did not respond, or refused the work itself: read-only, disk full, shutting down."""


class DatabaseLocked(Transient, category="DATABASE_FAILED", is_internal=True):
    """Another transaction holds a lock on the row. Not an outage: other rows can be processed."""


class LocalFailure(Transient, category="STORAGE_FAILED", event_kind="disk_failed", is_internal=True):
    """An operation of this machine failed, whatever file it was for (moorage/local_errors.py has the errno values)."""


class DiskFull(LocalFailure):
    """A disk of this machine, nearly always the temporary folder, is full, read-only or broken."""


class ResourceExhausted(LocalFailure):
    """Memory, processes or file descriptors of this machine are exhausted."""


class ConfigError(MoorageError):
    """A setting or the state of a server prevents the start; the message states the remedy."""
