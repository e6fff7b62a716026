"""Parsing of the stand-in's scripts."""

import pytest

from simulation.provider import pictures, script


def test_the_default_script_creates_one_valid_picture_in_a_list():
    """A prediction without a script must behave like a healthy model."""
    parsed = script.parse_script(None)

    assert (parsed.status, parsed.outputs, parsed.shape, parsed.webhook) == ("succeeded", 1, "list", "ok")
    assert parsed.output_fault(0) is script.NO_FAULT


def test_a_script_is_used_as_written():
    """A test must get exactly the faults that it selects."""
    parsed = script.parse_script({"outputs": 3, "formats": ["avif"], "faults": {"2": "404_always"}, "late_s": 2})

    assert parsed.formats == ("avif",)
    assert parsed.output_fault(1).expected == "kept"
    assert parsed.output_fault(2).expected == "dead"
    assert parsed.late_s == 2.0


def test_the_files_of_a_folder_are_the_default_formats():
    """A folder of pictures is given so that it is served."""
    parsed = script.parse_script({}, ("a.mp4", "b.png"))

    assert parsed.formats == ("a.mp4", "b.png")
    assert script.parse_script({"formats": ["png", "a.mp4"]}, ("a.mp4",)).formats == ("png", "a.mp4")
    assert script.parse_script({}).formats == pictures.FORMATS


@pytest.mark.parametrize(
    ("invalid", "message"),
    [
        ([], "standin must be an object"),
        ({"outptus": 3}, "standin.outptus: Extra inputs are not permitted"),
        ({"status": "done"}, "standin.status: Value error, 'done' is not known"),
        ({"shape": 3}, "standin.shape: Input should be a valid string"),
        ({"webhook": "lost"}, "'lost' is not known"),
        ({"outputs": True}, "standin.outputs: Input should be a valid integer"),
        ({"outputs": 101}, "less than or equal to 100"),
        ({"duration_s": -1}, "standin.duration_s: Input should be greater than or equal to 0"),
        ({"late_s": float("nan")}, "standin.late_s: Input should be"),
        ({"formats": []}, "at least 1 item"),
        ({"submit": "gone"}, "'gone' is not known"),
        ({"submit_times": -1}, "standin.submit_times: Input should be"),
        ({"submit_s": "1"}, "standin.submit_s: Input should be a valid number"),
        ({"width_px": 5000}, "less than or equal to 4096"),
        ({"formats": ["tiff"]}, "'tiff' is not known"),
        ({"faults": {"first": "slow"}}, "standin.faults.first"),
        ({"faults": {"0": "sluggish"}}, "'sluggish' is not known"),
        ({"faults": {"1": "slow"}}, "names output 1, but there are 1"),
        ({"shape": "data", "faults": {"0": "429_once"}}, "429_once does not apply to a data: URI"),
    ],
)
def test_an_invalid_script_is_rejected(invalid, message):
    """A misspelt fault that is ignored would make a test that cannot fail."""
    with pytest.raises(script.ScriptError) as caught:
        script.parse_script(invalid)

    assert message in str(caught.value)


def test_a_fault_expects_kept_exactly_if_its_last_transfer_is_whole():
    """The ledger's expectation must follow from what is served."""
    for name, fault in script.FAULTS.items():
        last = fault.transfers[-1]
        is_served = fault.is_renewable or last.mode in ("whole", "drip", "chunked") or last.target == "own"
        is_whole = fault.content == "whole" and fault.source == "own" and is_served

        assert (fault.expected == "kept") == is_whole, name
