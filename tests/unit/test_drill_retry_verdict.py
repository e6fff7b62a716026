"""Faults as explanations of repeated attempts: with one every two seconds, the time alone would explain anything."""

import pytest

from simulation.chaos import verdict
from simulation.chaos.faults import KINDS
from simulation.chaos.targets import Fault

NOW = 1_000_000.0
DIED, LOST, STORAGE, FULL = "worker_died", "lease_expired", "storage_failed", "disk_failed"
UNAVAILABLE, OTHER = "source_unavailable", "attempt_failed"


def repeat(kind, at=NOW, node="keep1", task="1"):
    row = {"subject": "output", "subject_id": "o", "kind": kind, "reason": f"why {kind}", "at": at}
    return {**row, "actor": f"{node}@host/{task}", "node": node}


def fault(kind, began=-5.0, ended=0.0, victim="keep1"):
    return Fault(victim=victim, kind=kind, began_at=NOW + began, ended_at=NOW + ended)


def find_unexplained(row, *landed, is_troubled=False):
    return verdict.find_unexplained([row], landed, lambda _: is_troubled)


@pytest.mark.parametrize(
    ("kind", "can", "cannot"),
    [
        (DIED, "pool child killed", "worker frozen"),
        (LOST, "worker frozen", "storage killed"),
        (LOST, "PostgreSQL stalled", "receiver killed"),
        (STORAGE, "storage stalled", "provider outage"),
        (FULL, "disk full", "storage killed"),
        (UNAVAILABLE, "provider outage", "PostgreSQL killed"),
        ("source_interrupted", "provider outage", "broker killed"),
    ],
)
def test_only_a_kind_of_fault_that_can_cause_a_repeat_explains_it(kind, can, cannot):
    """A download that failed without a fault must not be explained by the kill of a beat."""
    assert find_unexplained(repeat(kind), fault(can)) == []
    assert f"output o was repeated without a fault: why {kind}" in find_unexplained(repeat(kind), fault(cannot))


@pytest.mark.parametrize(("event", "kind"), [(DIED, "pool child killed"), (FULL, "disk full")])
def test_a_fault_of_one_worker_explains_nothing_at_another(event, kind):
    """The other worker's error has another cause."""
    assert find_unexplained(repeat(event, node="keep2"), fault(kind, victim="keep1")) != []


def test_a_stopping_worker_is_explained_by_no_fault():
    """A drill stops no worker: one that ends by itself is a bug."""
    assert find_unexplained(repeat("worker_stopping"), *(fault(kind) for kind in KINDS)) != []


def test_any_fault_may_cause_an_unspecific_error():
    """The effects of faults on libraries are not all known."""
    assert find_unexplained(repeat(OTHER), fault("beat killed")) == []
    assert find_unexplained(repeat(OTHER)) != []


@pytest.mark.parametrize(("event", "kind", "seconds"), [(LOST, "worker frozen", 90), (STORAGE, "storage killed", 45)])
def test_a_fault_explains_only_repeats_within_its_aftermath(event, kind, seconds):
    """Later repeats have another cause, and a repeat cannot precede its fault."""
    assert find_unexplained(repeat(event, NOW + seconds - 1), fault(kind)) == []
    assert find_unexplained(repeat(event, NOW + seconds + 1), fault(kind)) != []
    assert find_unexplained(repeat(event, NOW - 7), fault(kind)) != []


def test_a_fault_of_the_provider_explains_only_what_providers_can_cause():
    """A file that is late by its script does not explain a dead worker."""
    assert find_unexplained(repeat(UNAVAILABLE), is_troubled=True) == []
    assert find_unexplained(repeat(OTHER), is_troubled=True) == []
    for kind in (DIED, LOST, STORAGE, FULL):
        assert find_unexplained(repeat(kind), is_troubled=True) != []


def test_during_a_clock_jump_the_fault_is_searched_at_the_true_time():
    """The event has the time of the jumped clock; the jump itself does not break storage."""
    row, jump = repeat(STORAGE, NOW + 3600), fault("clock jump")

    assert find_unexplained(row, jump) != []
    assert find_unexplained(row, fault("storage killed")) != []
    assert find_unexplained(row, jump, fault("storage killed")) == []


def test_deaths_are_counted_against_the_kills_of_their_worker():
    """One kill ends one task."""
    two, kill = [repeat(DIED, task="1"), repeat(DIED, task="2")], fault("pool child killed")

    unexplained = verdict.find_unexplained(two, [kill, fault("pool child killed", victim="keep2")], lambda _: True)

    assert unexplained == ["keep1: 2 processes died during work, and 1 were killed"]
    assert verdict.find_unexplained(two, [kill, kill], lambda _: True) == []


def test_one_kill_explains_all_rows_of_its_task():
    """A task ingests several deliveries: one death of it was counted as that of two processes."""
    batch = [repeat(DIED, node="quick"), repeat(DIED, node="quick")]

    assert verdict.find_unexplained(batch, [fault("pool child killed", victim="quick")], lambda _: True) == []
