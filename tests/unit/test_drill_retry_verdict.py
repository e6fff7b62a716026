"""Which fault explains which repeated attempt: with one every two seconds, the time alone would explain anything."""

import pytest

from simulation.chaos import retry_verdict
from simulation.chaos.faults import KINDS
from simulation.chaos.schedule import Landed

AT = 1_000_000.0
DIED, LOST, STORAGE, FULL, AWAY = "worker_died", "lease_expired", "storage_failed", "disk_failed", "source_unavailable"
OTHER = "attempt_failed"


def repeat(kind, at=AT, node="keep1"):
    return {"subject": "output", "subject_id": "o", "kind": kind, "reason": f"why {kind}", "node": node, "at": at}


def fault(kind, began=-5.0, ended=0.0, victim="keep1"):
    return Landed(kind, AT + began, AT + ended, victim)


def judged(row, *landed, is_troubled=False):
    return retry_verdict.unexplained([row], landed, lambda _: is_troubled)


@pytest.mark.parametrize(
    ("kind", "can", "cannot"),
    [
        (DIED, "pool child killed", "worker frozen"),
        (LOST, "worker frozen", "storage killed"),
        (LOST, "PostgreSQL stalled", "receiver killed"),
        (STORAGE, "storage stalled", "provider outage"),
        (FULL, "disk full", "storage killed"),
        (AWAY, "provider outage", "PostgreSQL killed"),
        ("source_interrupted", "provider outage", "broker killed"),
    ],
)
def test_only_a_kind_of_fault_that_can_bring_a_repeat_explains_it(kind, can, cannot):
    """A download that broke by itself would hide behind the kill of a beat."""
    assert judged(repeat(kind), fault(can)) == []
    assert f"output o was repeated without a fault: why {kind}" in judged(repeat(kind), fault(cannot))


@pytest.mark.parametrize(("event", "kind"), [(DIED, "pool child killed"), (FULL, "disk full")])
def test_what_hits_one_worker_explains_nothing_at_another(event, kind):
    """The other one's trouble has a cause of its own."""
    assert judged(repeat(event, node="keep2"), fault(kind, victim="keep1")) != []


def test_a_stopping_worker_is_explained_by_no_fault():
    """A drill asks nobody to stop: a worker that ends by itself is a bug."""
    assert judged(repeat("worker_stopping"), *(fault(kind) for kind in KINDS)) != []


def test_a_reason_that_no_kind_is_known_for_may_be_any_faults_doing():
    """What a fault does to a library is not known for all of them."""
    assert judged(repeat(OTHER), fault("beat killed")) == []
    assert judged(repeat(OTHER)) != []


@pytest.mark.parametrize(("event", "kind", "seconds"), [(LOST, "worker frozen", 90), (STORAGE, "storage killed", 45)])
def test_a_fault_explains_for_as_long_as_it_is_felt(event, kind, seconds):
    """What comes later has another cause, and nothing has it before the fault."""
    assert judged(repeat(event, AT + seconds - 1), fault(kind)) == []
    assert judged(repeat(event, AT + seconds + 1), fault(kind)) != []
    assert judged(repeat(event, AT - 7), fault(kind)) != []


def test_the_providers_trouble_explains_only_what_providers_do():
    """A file that comes late by its script is no reason for a dead worker."""
    assert judged(repeat(AWAY), is_troubled=True) == []
    assert judged(repeat(OTHER), is_troubled=True) == []
    for kind in (DIED, LOST, STORAGE, FULL):
        assert judged(repeat(kind), is_troubled=True) != []


def test_in_a_jump_of_the_clock_the_fault_is_looked_for_at_the_true_time():
    """The edge carries the hour of the jumped clock; the jump itself breaks no storage."""
    row, jump = repeat(STORAGE, AT + 3600), fault("clock jump")

    assert judged(row, jump) != []
    assert judged(row, fault("storage killed")) != []
    assert judged(row, jump, fault("storage killed")) == []


def test_deaths_are_counted_against_the_kills_of_their_worker():
    """One kill ends one task."""
    two, kill = [repeat(DIED), repeat(DIED)], fault("pool child killed")

    found = retry_verdict.unexplained(two, [kill, fault("pool child killed", victim="keep2")], lambda _: True)

    assert found == ["keep1: 2 processes died at their work, and 1 were killed"]
    assert retry_verdict.unexplained(two, [kill, kill], lambda _: True) == []
