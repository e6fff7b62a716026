"""How fast this machine is just now, and bounds that hold on a busy one too."""

import statistics
import sys
import time
from collections.abc import Callable

import pytest

from tests.acceptance.world import World

QUIET_SECONDS = 1.0  # an undisturbed job of one file takes half of it on two idle cores


def settled(world: World) -> float:
    """Return the seconds until a job that is asked for now has been kept."""
    since = time.monotonic()
    world.await_end(world.ask({"outputs": 1, "duration_s": 0.1}))
    return time.monotonic() - since


def hold(
    world: World, what: str, measure: Callable[[], list[float]], *, worst: float, median: float | None = None
) -> None:
    """
    Measure, print the figures, and fail where they break their bounds.

    The bounds, in seconds, are those of a machine with room. Where an undisturbed job takes longer than QUIET_SECONDS
    they grow as that does, and what breaks them is measured once more: other work may have had the cores meanwhile.
    """
    for _ in range(2):
        before, took, after = settled(world), measure(), settled(world)
        slow = max(1.0, before / QUIET_SECONDS, after / QUIET_SECONDS)
        told = f"median {statistics.median(took):.2f} s, worst {max(took):.2f} s of {len(took)}, bounds x {slow:.1f}"
        sys.stdout.write(f"\n{what}: {told}")
        if statistics.median(took) < (median or worst) * slow and max(took) < worst * slow:
            return
        if slow == 1.0:
            break
    pytest.fail(f"{what}: {told}")
