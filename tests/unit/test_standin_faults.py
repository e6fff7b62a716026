"""The vocabulary in which tests and the demo order faults."""

import pytest

from simulation.provider import faults, pictures


def test_no_order_gives_one_good_picture_in_a_list():
    """A prediction without a script must behave like a healthy model."""
    plan = faults.plan(None)

    assert (plan.status, plan.outputs, plan.shape, plan.webhook) == ("succeeded", 1, "list", "ok")
    assert plan.fault(0) is faults.NONE


def test_a_script_is_taken_as_written():
    """What a test orders is what it gets."""
    plan = faults.plan({"outputs": 3, "formats": ["avif"], "faults": {"2": "404_always"}, "late_s": 2})

    assert plan.formats == ("avif",)
    assert plan.fault(1).expected == "kept"
    assert plan.fault(2).expected == "dead"
    assert plan.late_s == 2.0


def test_the_folders_files_are_the_default_formats():
    """A folder is given in order to be served."""
    plan = faults.plan({}, ("a.mp4", "b.png"))

    assert plan.formats == ("a.mp4", "b.png")
    assert faults.plan({"formats": ["png", "a.mp4"]}, ("a.mp4",)).formats == ("png", "a.mp4")
    assert faults.plan({}).formats == pictures.KINDS


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ([], "standin must be an object"),
        ({"outptus": 3}, "standin.outptus is not known"),
        ({"status": "done"}, "standin.status: 'done' is not known"),
        ({"shape": 3}, "standin.shape: 3 is not known"),
        ({"webhook": "lost"}, "standin.webhook: 'lost' is not known"),
        ({"outputs": True}, "standin.outputs must be a whole number"),
        ({"outputs": 101}, "from 0 to 100"),
        ({"duration_s": -1}, "standin.duration_s must be a number of seconds"),
        ({"late_s": float("nan")}, "standin.late_s must be a number of seconds"),
        ({"formats": []}, "at least one name"),
        ({"submit": "gone"}, "standin.submit: 'gone' is not known"),
        ({"submit_times": -1}, "standin.submit_times must be a whole number"),
        ({"submit_s": "1"}, "standin.submit_s must be a number of seconds"),
        ({"width_px": 5000}, "from 0 to 4096"),
        ({"formats": ["tiff"]}, "'tiff' is not known"),
        ({"faults": {"first": "slow"}}, "'first' is not the number of an output"),
        ({"faults": {"0": "sluggish"}}, "'sluggish' is not known"),
        ({"faults": {"1": "slow"}}, "names output 1, but there are 1"),
        ({"shape": "data", "faults": {"0": "429_once"}}, "a data: URI cannot suffer 429_once"),
    ],
)
def test_what_is_not_in_the_vocabulary_is_refused(asked, told):
    """A misspelt fault that is silently left out would make a test that cannot fail."""
    with pytest.raises(faults.PlanError) as caught:
        faults.plan(asked)

    assert told in str(caught.value)


def test_every_fault_that_ends_well_ends_with_a_whole_answer():
    """The ledger's expectation must follow from what is served."""
    for name, fault in faults.FAULTS.items():
        last = fault.acts[-1]
        good = fault.renewed or (last.how in ("whole", "drip", "chunked") or last.to == "own")
        whole = fault.content == "whole" and fault.source == "own" and good

        assert (fault.expected == "kept") == whole, name
