"""Errors, typed by what the caller does next; the categories are those that rows and dead letters carry."""

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
    Base of every error raised on purpose.

    Attributes:
        category: what the row and the dead letter are filed under.
        ours: our own storage, database or disk failed; such failures do not count toward the error limit.
        event_kind: what the event of a retry after it is filed under.
        retryable: whether a later replay of the dead letter could succeed.
        facts: what was measured (sizes, limits, statuses), kept with the dead letter as JSON.
    """

    category: Category = "INTERNAL"
    event_kind: EventKind = "attempt_failed"
    is_internal: bool = False
    retryable: bool = False

    def __init__(self, message: str, *, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.facts: dict[str, Any] = dict(facts or {})


class Transient(MoorageError):
    """May work later: try again, `retry_after` seconds on at least."""

    retryable = True

    def __init__(
        self, message: str, *, facts: Mapping[str, Any] | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message, facts=facts)
        self.retry_after: Final = retry_after


class Permanent(MoorageError):
    """Will never work: dead-letter now."""


class Refused(MoorageError):
    """The request is not accepted: answer `status` (4xx), keep nothing."""

    def __init__(self, message: str, *, status: int = 400, facts: Mapping[str, Any] | None = None) -> None:
        super().__init__(message, facts=facts)
        self.status: Final = status


class LeaseLost(MoorageError):
    """Another worker owns this row, or nobody does any more: stop quietly, write nothing."""


class StepInterrupted(MoorageError):
    """The worker is stopping and this work cannot end in time: give the row back, its attempt not counted."""

    event_kind: EventKind = "worker_stopping"


# --- webhooks -------------------------------------------------------------------------------------------------


class BadSignature(Refused):
    """The delivery is not signed by any of the provider's live secrets, or its time stamp is stale."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=401)


class KeysStale(Transient):
    """The keys that judge a delivery must be fetched first: fetch them and verify again, or ask for it once more."""

    category: Category = "PROVIDER_FAILED"


class MalformedPayload(Permanent):
    """A correctly signed body that cannot be understood as the provider's dialect."""

    category: Category = "VALIDATION_FAILED"


class UnrelatedEvent(MoorageError):
    """A correctly signed delivery about something that is no prediction: it is ignored, with this reason."""


class UnknownPrediction(Permanent):
    """A delivery for a prediction that nobody registered in time."""

    category: Category = "UNKNOWN_PREDICTION"
    retryable = True


# --- providers ------------------------------------------------------------------------------------------------


class ProviderUnavailable(Transient):
    """The provider's API did not answer, answered 429 or 5xx."""

    category: Category = "PROVIDER_FAILED"


class ProviderRefused(Permanent):
    """The provider's API refused for good: bad token, no such prediction."""

    category: Category = "PROVIDER_FAILED"
    retryable = True


class NotSubmitted(ProviderUnavailable):
    """A submission certainly made nothing (no connection, 503 before it was read): it may be sent again."""


class ProviderBusy(NotSubmitted):
    """The provider has enough of us for now (429): come again after `retry_after`; this costs no attempt."""


class SubmitUncertain(ProviderUnavailable):
    """A submission was sent, and nobody knows what became of it: it must not be sent again while it can be found."""


class BillingRefused(ProviderRefused):
    """The provider wants money first: no credit, quota spent. Asking again will not help, a person will."""

    category: Category = "BILLING_FAILED"


# --- downloads ------------------------------------------------------------------------------------------------


class DownloadInterrupted(Transient):
    """The download broke: no connection, time-out, 429, 5xx, a body shorter than announced."""

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
    """The provider answered 401, 403, 404 or 410: the file is deleted or the URL is dead. Ask once for a fresh URL."""

    category: Category = "DOWNLOAD_FAILED"
    retryable = True


class DownloadRefused(Permanent):
    """We will not fetch this: address not public, host not allowed, too large, too many redirects, bad URL."""

    category: Category = "DOWNLOAD_FAILED"


# --- validation -----------------------------------------------------------------------------------------------


class InvalidMedia(Permanent):
    """The bytes are not a whole picture or video of an accepted format within the limits."""

    category: Category = "VALIDATION_FAILED"


# --- webhooks out ---------------------------------------------------------------------------------------------


class NotificationFailed(Transient):
    """The application did not take a notification: no answer in time, or one that is not 2xx."""

    category: Category = "NOTIFY_FAILED"


class NotificationRefused(Permanent):
    """The application wants no more of a notification (410), or there is nobody to send it to."""

    category: Category = "NOTIFY_FAILED"
    retryable = True


# --- our own servers ------------------------------------------------------------------------------------------


class StorageUnavailable(Transient):
    """Our object storage did not take or give an object now."""

    category: Category = "STORAGE_FAILED"
    event_kind: EventKind = "storage_failed"
    is_internal = True


class StorageRefused(Transient):
    """
    Our object storage says no: a permission, a bucket that is missing, a wrong key.

    It is ours to mend, so no file is given up for it: credentials that were wrong for a minute must not make a dead
    letter of everything that was due.
    """

    category: Category = "STORAGE_FAILED"
    event_kind: EventKind = "storage_failed"
    is_internal = True


class ObjectRefused(Permanent):
    """Our object storage will never take this object: it is larger than the store's limit."""

    category: Category = "STORAGE_FAILED"
    retryable = True


class DatabaseUnavailable(Transient):
    """PostgreSQL did not answer."""

    category: Category = "DATABASE_FAILED"
    is_internal = True


class DiskFull(Transient):
    """The temporary folder is full or broken."""

    category: Category = "STORAGE_FAILED"
    event_kind: EventKind = "disk_failed"
    is_internal = True


class ConfigError(MoorageError):
    """A setting or the state of a server refuses the start; the message says what to write or do."""
