"""The named crash points of the tree: each is crashed at by some test, and no step or sweep is without any."""

import inspect
import re
from pathlib import Path
from typing import get_args

import pytest

from moorage.model import Step
from tests.acceptance.test_failpoint_crashes import POINTS, RECEIVER, SHORT
from worker import schedule, step_runner

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("db", "egress", "media", "providers", "receiver", "storage", "tasks", "web", "worker")
TESTS = [path for path in (ROOT / "tests").glob("*/*.py") if path != Path(__file__)]
STEPS = get_args(Step)
SWEEPS = schedule.SWEEPS


def named_in(source: str) -> set[str]:
    """Return the names of failpoints, those around a COMMIT (Database.transaction) by the `point` that names them."""
    points = re.findall(r'\bpoint="(\w+)"', source)
    around = {f"{point}.{side}_commit" for point in points for side in ("before", "after")}
    return around | {name for name in re.findall(r'failpoint\(f?"([^"]+)"\)', source) if "{point}" not in name}


def failpoints() -> set[str]:
    """Return the names of all failpoints in the tree; those that name a step or a sweep once for each."""
    found = set()
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for name in named_in(path.read_text(encoding="utf-8")):
            values = SWEEPS if "{name}" in name else STEPS
            found |= {re.sub(r"\{(item\.step|step|name)\}", value, name) for value in values}
    return found


def test_every_failpoint_is_crashed_at() -> None:
    """A new failpoint without a crash test proves nothing: some test names it."""
    named = "".join(path.read_text(encoding="utf-8") for path in TESTS)

    assert {name for name in failpoints() if f'"{name}"' not in named} == set()


def test_every_requested_crash_has_a_failpoint() -> None:
    """A name that was changed in the tree alone would wait for a crash that cannot come."""
    armed = {name for path in TESTS for name in re.findall(r'arm\("([^"]+)"\)', path.read_text(encoding="utf-8"))}

    assert {*POINTS, *RECEIVER, *armed} <= failpoints()


def test_the_short_form_crashes_in_every_part() -> None:
    """What only `make prove` crashes at is another line of a step or sweep that `make test` crashes at as well."""
    parts = {name.partition(".")[0] for name in (*POINTS, *RECEIVER)}

    assert {name.partition(".")[0] for name in SHORT} == parts
    assert {*POINTS, *RECEIVER} >= SHORT


@pytest.mark.parametrize("step", STEPS)
def test_a_step_without_failpoints_fails_the_suite(step: Step) -> None:
    """Every step has failpoints before its last commit, and one after it."""
    source = Path(inspect.getfile(step_runner.STEPS[step])).read_text(encoding="utf-8")

    own = named_in(source)

    behind = {name for name in own if name.endswith(".after_commit")}
    assert behind
    assert own - behind


@pytest.mark.parametrize("sweep", SWEEPS)
def test_a_sweep_without_failpoints_fails_the_suite(sweep: str) -> None:
    """Taking and finishing its tick is one commit each, what it does between is another; `usage` only counts."""
    own = {name for name in failpoints() if name.startswith(f"{sweep}.")}
    of_its_tick = {f"{sweep}.{place}" for place in ("after_tick", "before_finish", "after_finish")}

    assert of_its_tick <= own
    assert own - of_its_tick or sweep == "usage"


def test_the_faults_page_counts_the_failpoints() -> None:
    """Its table states the number of failpoints."""
    page = (ROOT / "docs/reference/faults.md").read_text(encoding="utf-8")

    assert f"each of the {len(failpoints())} failpoints" in page
