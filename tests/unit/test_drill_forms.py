"""The forms of the drill name faults that exist, and the documentation names the forms."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.commands import drill
from embedded import small_disk
from simulation.chaos.faults import KINDS
from simulation.chaos.forms import FORMS


def test_every_kind_of_fault_is_in_a_form():
    """A fault that no form injects is never injected; a form with an unknown one ends with an error."""
    assert {kind for form in FORMS.values() for kind in form.kinds} == set(KINDS)


@pytest.mark.parametrize(
    ("landed", "expected"),
    [
        ({}, False),  # too short for a fault
        ({"pool child killed": 2}, False),  # the last of one round and the first of the next
        ({"pool child killed": 3}, True),
        ({"pool child killed": 3, "row locks held": 1}, False),
    ],
)
def test_a_form_whose_own_faults_never_land_is_noticed(landed: dict[str, int], expected: bool):
    """An injection that always fails, and returns nothing, would test nothing and be clean."""
    assert drill.has_only_kills(landed) is expected


def test_only_one_form_raises_the_limits():
    """With high limits an outage that is counted against a file stays unseen."""
    raised = [name for name, form in FORMS.items() if form.environment.keys() & {"MOORAGE_MAX_ERRORS"}]

    assert raised == ["all"]


def test_help_and_documentation_list_the_forms(project_root: Path):
    page = (project_root / "docs/drill.md").read_text(encoding="utf-8")

    shown = CliRunner().invoke(drill.drill, ["--help"]).output

    for name, form in FORMS.items():
        assert f"{name} " in shown
        assert f"| `{name}` | {form.description} |" in page


@pytest.mark.parametrize("name", ["postgres-disk-full", "worker-disk-full"])
def test_a_form_that_needs_a_mount_is_reported_as_skipped_without_one(monkeypatch, tmp_path, name):
    """A drill that tested nothing must not look like a clean one."""
    monkeypatch.setattr(small_disk, "enter_mount_namespace", lambda: False)
    report = tmp_path / "report.json"

    done = CliRunner().invoke(drill.drill, ["--form", name, "--report", str(report)])

    assert done.exit_code == 2
    assert "SKIPPED" in done.output
    assert report.read_text() == f'{{\n  "form": "{name}",\n  "skipped": true\n}}\n'
