"""Every state transition that is allowed. `moorage audit` compares the recorded events with it."""

from collections.abc import Mapping
from typing import Final, Literal

Transition = tuple[str | None, str]

SourceEventKind = Literal[
    "source_unavailable",  # the server of the file returned 408, 425, 429 or 5xx
    "source_interrupted",  # the connection to it failed, or the file arrived too slowly or incomplete
]

# The reason why a lease ended without a result: `events.kind`.
EventKind = (
    Literal["worker_died", "lease_expired", "worker_stopping", "storage_failed", "disk_failed", "attempt_failed"]
    | SourceEventKind
)


def _from(state: str | None, *to_states: str) -> frozenset[Transition]:
    return frozenset((state, to_state) for to_state in to_states)


# A state that follows itself: its row was retried, polled again, returned, or its lease was released.
TRANSITIONS: Final[Mapping[str, frozenset[Transition]]] = {
    "delivery": _from(None, "new")
    | _from("new", "new", "unmatched", "applied", "ignored", "dead")
    | _from("unmatched", "unmatched", "applied", "ignored", "dead")
    | _from("dead", "new"),  # replay
    "job": _from(None, "open", "keeping")
    | _from("open", "keeping", "failed", "cancelled")
    | _from("open", "partial")  # the retry failed: the placeholder remains
    | _from("keeping", "succeeded", "partial", "failed", "cancelled")
    | _from("keeping", "open")  # none of the chosen files could be kept: next entry of the fallback chain
    | _from("keeping", "keeping")  # a late success is chosen; a note on its files
    | _from("succeeded", "keeping")  # replay of a file on a host that was not the provider's
    | _from("partial", "keeping", "open")  # reopened
    | _from("failed", "keeping", "open"),
    "prediction": _from(None, "planned", "running", "succeeded")
    | _from("planned", "planned")  # in-flight limit reached, or own storage unavailable
    | _from("planned", "submitting", "cancelled")
    | _from("planned", "failed")  # an input file is deleted, or the job's deadline passed
    | _from("planned", "lost")  # too many crashes
    | _from("submitting", "planned")  # no prediction was created: submitted again
    | _from("submitting", "submitting")  # outcome unknown: looked up
    | _from("submitting", "abandoned")  # not found: only its webhook can still report it
    | _from("submitting", "running", "failed", "lost")
    | _from("running", "running", "abandoned", "succeeded", "failed", "cancelled", "lost")
    | _from("abandoned", "abandoned", "succeeded", "failed", "cancelled", "lost")
    | _from("lost", "running")  # replay
    | _from("lost", "succeeded")  # a late success
    | _from("cancelled", "succeeded")  # the same: its provider did not stop in time
    | _from("failed", "succeeded"),  # the same, after a success without files
    "output": _from(None, "waiting", "dead")
    | _from("waiting", "waiting", "kept", "dead")
    | _from("kept", "discarding")  # partial results discarded by policy
    | _from("discarding", "discarding", "discarded")
    | _from("dead", "waiting"),  # replay
    "notification": _from(None, "waiting")
    | _from("waiting", "waiting", "sent", "dead")
    | _from("dead", "waiting")  # replay
    | _from("sent", "waiting"),  # sent again by an operator
    "dead_letter": _from(None, "open") | _from("open", "open", "replayed", "discarded"),
    "pause": _from(None, "paused") | _from("paused", "resumed"),
    "render": _from(None, "published") | _from("published", "published", "deleted"),
}

TERMINAL_PREDICTION_STATES: Final = frozenset({"succeeded", "failed", "cancelled", "lost"})
TERMINAL_JOB_STATES: Final = frozenset({"succeeded", "partial", "failed", "cancelled"})
