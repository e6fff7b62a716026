"""A short drill: the stack under load and faults loses nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LONG = {"jobs": 60, "minutes": 0.7, "files": 120, "job_requests": 5, "kills": 5}
SHORT = {"jobs": 20, "minutes": 0.25, "files": 40, "job_requests": 1, "kills": 1}


@pytest.mark.timeout(600)  # twice what the long one takes on two busy cores, and more
@pytest.mark.parametrize("size", [SHORT, pytest.param(LONG, marks=pytest.mark.prove)], ids=["short", "long"])
def test_a_drill_loses_nothing(tmp_path: Path, project_root: Path, size: dict[str, float]) -> None:
    """Some faults with a fixed seed; `make drill` has the most."""
    report = tmp_path / "report.json"
    drill = ["drill", "--jobs", str(size["jobs"]), "--minutes", str(size["minutes"]), "--every", "2", "--seed", "11"]

    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *drill, "--folder", str(tmp_path / "drill"), "--report", str(report)],
        cwd=project_root,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", str(tmp_path)), "MOORAGE_DOTENV": ""},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    result = json.loads(report.read_text())
    assert (result["lost"], result["doubled"], result["unexpected"], result["unexplained"]) == ([], [], [], [])
    assert result["audit"] == []
    assert result["jobs"] == size["jobs"]
    assert result["files"] > size["files"]
    assert result["job_requests"]["sent"] >= size["job_requests"]
    assert (
        result["job_requests"]["kept"] + result["job_requests"]["placeholders"] + result["job_requests"]["failed"]
        == result["job_requests"]["sent"]
    )
    assert result["kills"] >= size["kills"]
    assert result["replayed"] >= 3
