"""The bench of statements and the arithmetic of the others."""

import pytest

from bench import burst, statements
from embedded.stack import Stack
from tests.integration.core import world


def test_statements_are_counted_with_requests_and_events(stack: Stack, database_url: str) -> None:
    """These counts do not depend on the machine: a statement or a request too many shows."""
    with world(stack, database_url) as at:
        result = statements.measure(at.deps, at.conn, [at.source.picture(1)], jobs=2)

    assert result["claims"] == 1
    assert result["requests"] == 2
    assert result["events"] == 10
    assert result["per_output"] == sum(result["round_trips"].values())


def test_the_longest_gap_includes_the_time_since_the_last_tick() -> None:
    """A sweep that stopped in mid-run has no next tick."""
    assert burst.find_longest_gap([5.0, 1.0, 2.0], 1.5, 6.0) == 3
    assert burst.find_longest_gap([1.0, 2.0], 1.5, 6.0) == 4
    assert burst.find_longest_gap([], 1.5, 6.0) == float("inf")


def test_the_longest_gap_includes_the_time_before_the_first_tick_of_a_burst() -> None:
    """A sweep that the first webhooks delay has its next tick only after the gap."""
    assert burst.find_longest_gap([-9.0, 0.0, 4.9], 2.1, 5.8) == 4.9
    assert burst.find_longest_gap([0.0], 2.1, 5.8) == 5.8
    assert burst.find_longest_gap([4.9], 2.1, 5.8) == pytest.approx(2.8)
