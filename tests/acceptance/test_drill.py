"""A short drill: the stack under load and faults loses nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(600)  # twice what it takes on two busy cores, and more
def test_a_short_drill_loses_nothing(tmp_path: Path, project_root: Path) -> None:
    """A minute of faults with a fixed seed; `make drill` is the long form."""
    report = tmp_path / "report.json"
    drill = ["drill", "--jobs", "60", "--minutes", "0.7", "--every", "2", "--seed", "11"]

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
    assert result["jobs"] == 60
    assert result["files"] > 120
    assert result["job_requests"]["sent"] >= 5
    assert (
        result["job_requests"]["kept"] + result["job_requests"]["placeholders"] + result["job_requests"]["failed"]
        == result["job_requests"]["sent"]
    )
    assert result["kills"] >= 5
