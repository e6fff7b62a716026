"""The tests' own promise: a skip that nobody listed with a reason fails the run, in one process or several."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PASSING = "\n\ndef test_something():\n    assert True\n"
WHOLE_FILE = 'import pytest\n\npytest.importorskip("no_such_package", reason="{why}")\n'
ONE_TEST = 'import pytest\n\n\n@pytest.mark.skip(reason="{why}")\ndef test_one():\n    assert False\n'
INSIDE = 'import pytest\n\n\ndef test_one():\n    pytest.skip("{why}")\n'
LISTED = "no Chromium is installed: see .ci/browser"
UNLISTED = "it fails on Fridays"


def test_unlisted_skips_fail_the_run_and_are_named(tmp_path):
    """A test that silently stops running proves nothing; nor does a file of which no test was ever seen."""
    kinds = (WHOLE_FILE, ONE_TEST, INSIDE)
    texts = [kind.format(why=f"{UNLISTED} {number}") for number, kind in enumerate(kinds)]

    done = ran(tmp_path, texts, "-n", "1", "--dist", "loadfile")

    named = [line for line in done.stdout.splitlines() if line.startswith("skip not listed in tests/conftest.py: ")]
    assert done.returncode == 1, done.stdout
    assert sorted(line[-len(UNLISTED) - 2 :] for line in named) == [f"{UNLISTED} {number}" for number in range(3)]


def test_a_listed_skip_is_shown_and_fails_nothing(tmp_path):
    """What a machine cannot have is no reason to call the code broken."""
    done = ran(tmp_path, [INSIDE.format(why=LISTED)])

    assert done.returncode == 0, done.stdout
    assert LISTED in done.stdout


def ran(folder, skipping, *flags):
    """Run files that skip beside one that passes."""
    for number, text in enumerate(skipping):
        (folder / f"test_skipping_{number}.py").write_text(text)
    (folder / "test_passing.py").write_text(PASSING)
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -ra -p no:schemathesis\n")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "pytest", "-p", "tests.conftest", *flags]
    return subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=100, check=False)
