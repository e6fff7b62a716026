"""The measurement of recoveries covers every kind of fault."""

from simulation.chaos import recovery, schedule
from simulation.chaos.faults import KINDS


def test_the_recovery_from_every_kind_of_fault_is_measured():
    """Without a recovery time a fault shows only that nothing was lost, not how long work was delayed."""
    assert set(KINDS) == recovery.PROBES.keys() | recovery.LEASE_KINDS


def test_no_kind_is_measured_in_two_ways():
    """Two different times would be reported as one."""
    assert recovery.PROBES.keys() & recovery.LEASE_KINDS == set()


def test_only_existing_kinds_disturb():
    """After a rename in one place, disturbed times would be reported as undisturbed."""
    assert set(KINDS) >= schedule.DISTURBING
