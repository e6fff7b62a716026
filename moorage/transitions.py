"""Every state change that may ever happen. `moorage audit` checks the history against it."""

from collections.abc import Mapping
from typing import Final

Transition = tuple[str | None, str]

TRANSITIONS: Final[Mapping[str, frozenset[Transition]]] = {
    "delivery": frozenset(
        {
            (None, "new"),
            ("new", "new"),  # tried again after a failure
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
            ("keeping", "open"),  # none of the chosen files could be kept: the chain goes on
            ("keeping", "keeping"),  # a late success is chosen while the placeholder is kept
            ("open", "partial"),  # tried again in vain: what there is stays a placeholder
            # the one door: reopen
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
            ("planned", "planned"),  # no room at its provider, or our own storage was away
            ("planned", "submitting"),
            ("planned", "cancelled"),
            ("planned", "failed"),  # a file of its input is gone, or the job's deadline passed
            ("submitting", "planned"),  # nothing was made: it is sent again
            ("submitting", "submitting"),  # nobody knows whether it was made: it is looked up
            ("submitting", "running"),
            ("submitting", "abandoned"),  # it was not found: only its webhook can still tell of it
            ("submitting", "failed"),
            ("planned", "lost"),  # its workers died too often
            ("submitting", "lost"),
            ("running", "running"),  # polled, or tried again
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
            ("waiting", "waiting"),  # tried again, handed back, released
            ("waiting", "kept"),
            ("waiting", "dead"),
            ("kept", "discarding"),  # partial results discarded by policy
            ("discarding", "discarding"),
            ("discarding", "discarded"),
            ("dead", "waiting"),  # replay
        }
    ),
    "notice": frozenset(
        {
            (None, "waiting"),
            ("waiting", "waiting"),  # tried again
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
