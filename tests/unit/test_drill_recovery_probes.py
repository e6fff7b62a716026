"""What a drill measures after its faults: something for every kind."""

from simulation.chaos import recovery_probes, schedule
from simulation.chaos.faults import KINDS


def test_the_recovery_from_every_kind_of_fault_is_measured():
    """A fault without a recovery time says only that nothing was lost, not how long people waited."""
    assert set(KINDS) == recovery_probes.NEEDS.keys() | recovery_probes.LEASES


def test_no_kind_is_measured_in_two_ways():
    """Its two times would be told as one."""
    assert recovery_probes.NEEDS.keys() & recovery_probes.LEASES == set()


def test_only_faults_that_there_are_disturb():
    """A name that was changed in one place would let its times pass for undisturbed ones."""
    assert set(KINDS) >= schedule.DISTURBING
