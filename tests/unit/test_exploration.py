"""Every interleaving of a small system, searched to the end; and systems that are broken, to see the search find it."""

import pytest

from tests.exploration import broken, checker, scenarios
from tests.exploration.state import Job, Row, State

MOST_STATES = 250_000


@pytest.mark.parametrize("name", scenarios.SHORT)
def test_no_interleaving_of_fewer_faults_breaks_a_rule(name: str) -> None:
    """What is broken is mostly broken by few faults: found in seconds, before `make prove` searches for long."""
    found = checker.explore(scenarios.SHORT[name], broken.CORRECT, most_states=MOST_STATES)

    assert found.counterexample is None, str(found.counterexample)
    assert found.rests > 0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.prove] * (name in scenarios.SHORT)) for name in scenarios.ALL]
)
def test_no_interleaving_breaks_a_rule(name: str) -> None:
    """The promise, over every order of two workers, a sweep, a late webhook, a replay and a fault."""
    found = checker.explore(scenarios.ALL[name], broken.CORRECT, most_states=MOST_STATES)

    assert found.counterexample is None, str(found.counterexample)
    assert found.rests > 0


@pytest.mark.parametrize("name", broken.VARIANTS)
def test_a_broken_system_is_found_out(name: str) -> None:
    """A search that finds nothing in a system without its fences would prove nothing about ours."""
    variant = broken.VARIANTS[name]

    found = checker.explore(variant.scenario, variant.rules, most_states=MOST_STATES)

    assert found.counterexample is not None
    assert found.counterexample.law.startswith(variant.law), str(found.counterexample)


@pytest.mark.parametrize("name", ["count without the job lock", "lock and count in one statement"])
def test_two_that_end_at_once_are_both_needed_to_break_the_count(name: str) -> None:
    """The way that is shown must be the race itself, not an accident of the model."""
    variant = broken.VARIANTS[name]

    found = checker.explore(variant.scenario, variant.rules)

    assert found.counterexample is not None
    assert {label.who for label in found.counterexample.way} == {0, 1}
    assert [label.what for label in found.counterexample.way].count("record: COMMIT") == 2


def test_states_that_differ_only_in_names_are_one() -> None:
    """Tokens and workers have names only for the reader; counted apart, the search would not end."""
    rows = (Row(), Row(), Row(), Row(), Row("waiting", token=3), Row("waiting", token=5), Row())
    others = (Row(), Row(), Row(), Row(), Row("waiting", token=8), Row("waiting", token=1), Row())

    assert checker.canonical(State((Job("keeping"), *rows))) == checker.canonical(State((Job("keeping"), *others)))


def test_states_that_differ_in_an_owner_are_two() -> None:
    """A search that merges too much skips what it should look at."""
    rows = (Row(), Row(), Row(), Row(), Row("waiting", token=3), Row("waiting"), Row())
    free = (Row(), Row(), Row(), Row(), Row("waiting"), Row("waiting"), Row())

    assert checker.canonical(State((Job("keeping"), *rows))) != checker.canonical(State((Job("keeping"), *free)))


def test_a_search_that_is_cut_off_says_so() -> None:
    """Half a search that passes would be taken for a proof."""
    with pytest.raises(RuntimeError, match="more than 100 states"):
        checker.explore(scenarios.STATEMENTS, broken.CORRECT, most_states=100)
