"""What beat ticks. Beat is only a clock: the sweep takes a slot in PostgreSQL, so any number of beats may run."""

from collections.abc import Mapping
from typing import Any

from moorage.settings import Settings
from worker import queues


def periods(settings: Settings) -> Mapping[str, float]:
    """Return the seconds between two runs of each sweep."""
    return {
        "dispatch": settings.dispatch_seconds,
        "reconcile": settings.reconcile_seconds,
        "drain": settings.drain_seconds,
        "discard": settings.discard_seconds,
    }


def entries(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return beat's schedule; a tick that waits longer than its period is dropped, so none pile up."""
    return {
        f"sweep-{name}": {
            "task": queues.SWEEP_TASK,
            "schedule": seconds,
            "args": [name],
            "options": {"queue": "quick", "expires": max(seconds, 2.0)},
        }
        for name, seconds in periods(settings).items()
    }
