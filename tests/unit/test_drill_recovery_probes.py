"""The measurement of recoveries covers every kind of fault."""

from simulation.chaos.faults import KINDS


def test_only_what_ends_a_task_is_measured_by_the_rows_that_were_held():
    """Every other kind needs a probe: without one its fault would show only that nothing was lost."""
    by_leases = {name for name, kind in KINDS.items() if kind.probe is None}

    assert by_leases == {"pool child killed", "worker killed", "worker frozen"}


def test_a_kind_that_ends_tasks_disturbs_no_other_recovery():
    """Work goes on elsewhere: marked as disturbed, nearly every recovery would count apart."""
    assert not any(kind.disturbs for kind in KINDS.values() if kind.probe is None)
