"""Errors, typed by what the caller does next. Rows and dead letters carry their categories."""

from collections.abc import Mapping
from typing import Any, Final, Literal

from moorage.transitions import EventKind

Category = Literal[
    "DOWNLOAD_FAILED",
    "VALIDATION_FAILED",
    "STORAGE_FAILED",
    "DATABASE_FAILED",
    "PROVIDER_FAILED",
    "BILLING_FAILED",
    "TIMED_OUT",
    "UNKNOWN_PREDICTION",
    "NOTIFY_FAILED",
    "POISON",
    "INTERNAL",
]


class MoorageError(Exception):
    """
    Base class of all moorage errors.

    Attributes:
        category: stored with the row and the dead letter.
        is_internal: our own storage, database or disk failed; does not count toward the error limit.
        event_kind: `events.kind` of a retry after this error.
        retryable: a later replay of the dead letter may succeed.
        facts: measurements (sizes, limits, statuses), stored with the dead letter as JSON.
    """

    category: Category = "INTERNAL"
    event_kind: EventKind = "attempt_failed"
    is_internal: bool = False
    retryable: bool = False

    def __init__(self, message: str, *, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.facts: dict[str, Any] = dict(facts or {})


class Transient(MoorageError):
    """May succeed later: retry after at least `retry_after` seconds."""

    retryable = True

    def __init__(
        self, message: str, *, facts: Mapping[str, Any] | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, facts=facts)
        self.retry_after: Final = retry_after


class Permanent(MoorageError):
    """Cannot succeed: dead-letter immediately."""


class Refused(MoorageError):
    """The request is rejected: return `status` (4xx), store nothing."""

    def __init__(self, message: str, *, status: int = 400, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, facts=facts)
        self.status: Final = status


class LeaseLost(MoorageError):
    """This worker no longer holds the lease of the row: stop and write nothing."""


class StepInterrupted(MoorageError):
    """The worker is shutting down and the step cannot end in time: release the row, do not count the attempt."""

    event_kind: EventKind = "worker_stopping"


# --- webhooks -------------------------------------------------------------------------------------------------


class BadSignature(Refused):
    """No current secret or key of the provider matches the signature, or its time stamp is stale."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=401)


class KeysStale(Transient):
    """The public keys must be fetched before the signature can be verified."""

    category: Category = "PROVIDER_FAILED"


class MalformedPayload(Permanent):
    """A signed body or a provider's response that does not have the documented format."""

    category: Category = "VALIDATION_FAILED"


class UnrelatedEvent(MoorageError):
    """A correctly signed delivery that is not about a prediction: it is ignored."""


class UnknownPrediction(Permanent):
    """A delivery for a prediction that was not registered in time."""

    category: Category = "UNKNOWN_PREDICTION"
    retryable = True


# --- providers ------------------------------------------------------------------------------------------------


class ProviderUnavailable(Transient):
    """The provider's API did not respond, or returned 429 or 5xx."""

    category: Category = "PROVIDER_FAILED"


class ProviderRefused(Permanent):
    """The provider's API rejected the request: invalid token, unknown prediction, invalid input."""

    category: Category = "PROVIDER_FAILED"
    retryable = True


class NotSubmitted(ProviderUnavailable):
    """The submission certainly created no prediction (no connection, 425, 429): it may be repeated."""


class ProviderBusy(NotSubmitted):
    """The provider returned 429: resubmit after `retry_after`. Does not count as an error."""


class SubmitUncertain(ProviderUnavailable):
    """A submission was sent without a usable response: look the prediction up before submitting again."""


class BillingRefused(ProviderRefused):
    """No credit or quota at the provider: an operator must act."""

    category: Category = "BILLING_FAILED"


# --- downloads ------------------------------------------------------------------------------------------------


class DownloadInterrupted(Transient):
    """No connection, timeout, 408, 425, 429, 5xx, or a body shorter than announced."""

    category: Category = "DOWNLOAD_FAILED"

    def __init__(
        self,
        message: str,
        *,
        facts: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
        event_kind: EventKind = "attempt_failed",
    ) -> None:
        super().__init__(message, facts=facts, retry_after=retry_after)
        self.event_kind = event_kind


class OutputGone(Permanent):
    """The server returned 401, 403, 404 or 410: the file is deleted or its URL expired. Request a fresh URL once."""

    category: Category = "DOWNLOAD_FAILED"
    retryable = True


class DownloadRefused(Permanent):
    """The download is not allowed: private address, unlisted host, file too large, too many redirects, bad URL."""

    category: Category = "DOWNLOAD_FAILED"


# --- validation -----------------------------------------------------------------------------------------------


class InvalidMedia(Permanent):
    """The file is not a complete image or video of an accepted format within the limits."""

    category: Category = "VALIDATION_FAILED"


# --- notifications --------------------------------------------------------------------------------------------


class NotificationFailed(Transient):
    """The application did not return 2xx to a notification in time."""

    category: Category = "NOTIFY_FAILED"


class NotificationRefused(Permanent):
    """The application returned 410, or MOORAGE_NOTIFY_URL is not set."""

    category: Category = "NOTIFY_FAILED"
    retryable = True


# --- own servers ----------------------------------------------------------------------------------------------


class StorageUnavailable(Transient):
    """The object store did not respond, or returned 5xx or SlowDown."""

    category: Category = "STORAGE_FAILED"
    event_kind: EventKind = "storage_failed"
    is_internal = True


class StorageRefused(Transient):
    """
    The object store rejected the request: missing permission or bucket, wrong key.

    Transient, because an operator can correct it: wrong credentials must not dead-letter every file that is due.
    """

    category: Category = "STORAGE_FAILED"
    event_kind: EventKind = "storage_failed"
    is_internal = True


class ObjectRefused(Permanent):
    """The object is larger than the store accepts."""

    category: Category = "STORAGE_FAILED"
    retryable = True


class DatabaseUnavailable(Transient):
    """PostgreSQL did not respond."""

    category: Category = "DATABASE_FAILED"
    is_internal = True


class DiskFull(Transient):
    """The temporary folder is full or not writable."""

    category: Category = "STORAGE_FAILED"
    event_kind: EventKind = "disk_failed"
    is_internal = True


class ConfigError(MoorageError):
    """A setting or the state of a server prevents the start; the message states the remedy."""
