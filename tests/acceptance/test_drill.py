"""A short drill: the stack under load with everything broken around it, and nothing lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LONG = {"jobs": 60, "minutes": 0.7, "files": 120, "orders": 5, "kills": 5}
SHORT = {"jobs": 30, "minutes": 0.35, "files": 60, "orders": 2, "kills": 2}


@pytest.mark.timeout(600)  # twice what the long one takes on two busy cores, and more
@pytest.mark.parametrize("size", [SHORT, pytest.param(LONG, marks=pytest.mark.prove)], ids=["short", "long"])
def test_a_drill_loses_nothing(tmp_path: Path, project_root: Path, size: dict[str, float]) -> None:
    """The promise in small: some faults by a fixed seed; `make drill` has the most."""
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
    told = json.loads(report.read_text())
    assert (told["lost"], told["doubled"], told["unexpected"], told["unexplained"]) == ([], [], [], [])
    assert told["audit"] == []
    assert told["jobs"] == size["jobs"]
    assert told["files"] > size["files"]
    assert told["orders"]["sent"] >= size["orders"]
    assert told["orders"]["kept"] + told["orders"]["placeholders"] + told["orders"]["failed"] == told["orders"]["sent"]
    assert told["kills"] >= size["kills"]
