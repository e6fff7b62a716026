"""Every state transition that is allowed. `moorage audit` compares the recorded events with it."""

from collections.abc import Mapping
from typing import Final, Literal

Transition = tuple[str | None, str]

# The reason why a lease ended without a result: `events.kind`.
EventKind = Literal[
    "worker_died",
    "lease_expired",
    "worker_stopping",
    "storage_failed",
    "disk_failed",
    "source_unavailable",  # the server of the file returned 408, 425, 429 or 5xx
    "source_interrupted",  # the connection to it failed
    "attempt_failed",  # any other error
]

TRANSITIONS: Final[Mapping[str, frozenset[Transition]]] = {
    "delivery": frozenset(
        {
            (None, "new"),
            ("new", "new"),  # retried after a failure
            ("new", "unmatched"),
            ("unmatched", "unmatched"),
            ("new", "applied"),
            ("new", "ignored"),
            ("new", "dead"),
            ("unmatched", "applied"),
            ("unmatched", "ignored"),
            ("unmatched", "dead"),
            ("dead", "new"),  # replay
        }
    ),
    "job": frozenset(
        {
            (None, "open"),
            (None, "keeping"),
            ("open", "keeping"),
            ("open", "failed"),
            ("open", "cancelled"),
            ("keeping", "succeeded"),
            ("keeping", "partial"),
            ("keeping", "failed"),
            ("keeping", "cancelled"),
            ("keeping", "open"),  # none of the chosen files could be kept: next entry of the fallback chain
            ("keeping", "keeping"),  # a late success is chosen while the placeholder is kept
            ("open", "partial"),  # the retry failed: the placeholder remains
            # reopened
            ("partial", "keeping"),
            ("partial", "open"),
            ("failed", "keeping"),
            ("failed", "open"),
        }
    ),
    "prediction": frozenset(
        {
            (None, "planned"),
            (None, "running"),
            (None, "succeeded"),
            ("planned", "planned"),  # in-flight limit reached, or own storage unavailable
            ("planned", "submitting"),
            ("planned", "cancelled"),
            ("planned", "failed"),  # an input file is deleted, or the job's deadline passed
            ("submitting", "planned"),  # no prediction was created: submitted again
            ("submitting", "submitting"),  # outcome unknown: looked up
            ("submitting", "running"),
            ("submitting", "abandoned"),  # not found: only its webhook can still report it
            ("submitting", "failed"),
            ("planned", "lost"),  # too many crashes
            ("submitting", "lost"),
            ("running", "running"),  # polled, or retried
            ("running", "abandoned"),
            ("abandoned", "abandoned"),
            *((live, end) for live in ("running", "abandoned") for end in ("succeeded", "failed", "cancelled", "lost")),
            ("lost", "running"),  # replay
            ("lost", "succeeded"),  # a late success that reopens its job
        }
    ),
    "output": frozenset(
        {
            (None, "waiting"),
            (None, "dead"),
            ("waiting", "waiting"),  # retried, returned, lease released
            ("waiting", "kept"),
            ("waiting", "dead"),
            ("kept", "discarding"),  # partial results discarded by policy
            ("discarding", "discarding"),
            ("discarding", "discarded"),
            ("dead", "waiting"),  # replay
        }
    ),
    "notification": frozenset(
        {
            (None, "waiting"),
            ("waiting", "waiting"),  # retried
            ("waiting", "sent"),
            ("waiting", "dead"),
            ("dead", "waiting"),  # replay
        }
    ),
    "dead_letter": frozenset({(None, "open"), ("open", "replayed"), ("open", "discarded")}),
    "render": frozenset({(None, "published"), ("published", "published"), ("published", "deleted")}),
}

TERMINAL_PREDICTION_STATES: Final = frozenset({"succeeded", "failed", "cancelled", "lost"})
TERMINAL_JOB_STATES: Final = frozenset({"succeeded", "partial", "failed", "cancelled"})
