"""A short drill: the stack under load with everything broken around it, and nothing lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(600)  # twice what it takes on two busy cores, and more
def test_a_short_drill_loses_nothing(tmp_path: Path, project_root: Path) -> None:
    """The promise in small: a minute of faults by a fixed seed; `make drill` is the long one."""
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
    told = json.loads(report.read_text())
    assert (told["lost"], told["doubled"], told["unexpected"], told["unexplained"]) == ([], [], [], [])
    assert told["audit"] == []
    assert told["jobs"] == 60
    assert told["files"] > 120
    assert told["orders"]["sent"] >= 5
    assert told["orders"]["kept"] + told["orders"]["placeholders"] + told["orders"]["failed"] == told["orders"]["sent"]
    assert told["kills"] >= 5
