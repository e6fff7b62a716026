"""Short drills: the stack under load and faults loses nothing."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from simulation.chaos.forms import FORMS
from tests.support import fork_server

LONG = {"jobs": 60, "minutes": 0.7, "files": 120, "job_requests": 5, "kills": 5}
SHORT = {"jobs": 20, "minutes": 0.25, "files": 40, "job_requests": 1, "kills": 1}


def run_drill(folder: Path, project_root: Path, *arguments: str) -> dict[str, Any]:
    """Run a drill with a fixed seed and return its report, which must be clean."""
    report = folder / "report.json"
    drill = ["drill", *arguments, "--seed", "11", "--folder", str(folder / "drill"), "--report", str(report)]

    done = fork_server.run(
        ["-m", "tests.support.forking_command", *drill],
        cwd=project_root,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", str(folder)), "MOORAGE_DOTENV": ""},
        timeout=580,
    )

    if done.returncode == 2 and "SKIPPED" in done.stdout:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    result: dict[str, Any] = json.loads(report.read_text())
    assert (result["lost"], result["doubled"], result["unexpected"], result["unexplained"]) == ([], [], [], [])
    assert result["audit"] == []
    return result


@pytest.mark.timeout(600)  # twice what the long one takes on two busy cores, and more
@pytest.mark.parametrize("size", [SHORT, pytest.param(LONG, marks=pytest.mark.prove)], ids=["short", "long"])
def test_a_drill_loses_nothing(tmp_path: Path, project_root: Path, size: dict[str, float]) -> None:
    """Some faults with a fixed seed; `make drill` has the most."""
    result = run_drill(
        tmp_path, project_root, "--jobs", str(size["jobs"]), "--minutes", str(size["minutes"]), "--every", "2"
    )

    assert result["jobs"] == size["jobs"]
    assert result["files"] > size["files"]
    assert result["job_requests"]["sent"] >= size["job_requests"]
    assert (
        result["job_requests"]["kept"] + result["job_requests"]["placeholders"] + result["job_requests"]["failed"]
        == result["job_requests"]["sent"]
    )
    assert result["kills"] >= size["kills"]
    assert result["replayed"] >= 1


@pytest.mark.prove
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [name for name in FORMS if name != "all"])
def test_each_form_of_the_drill_loses_nothing(tmp_path: Path, project_root: Path, name: str) -> None:
    """What refuses, instead of disappearing, must not be counted against a file."""
    result = run_drill(tmp_path, project_root, "--form", name, "--jobs", "60", "--minutes", "0.6", "--every", "3")

    assert result["jobs"] == 60
    assert set(result["faults"]) - {"pool child killed"}
