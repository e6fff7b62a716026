"""How an audit runs: its second look, its interruption and resumption, and what the command prints."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from db.audit import checks as rules
from db.connection import Connection
from embedded.stack import Stack
from moorage.errors import DatabaseUnavailable, Refused
from tasks.audit import advice, checkpoint, objects, rows, run
from tasks.audit.findings import MAX_LISTED, Finding, Page
from tasks.audit.rows import DOCUMENT_CHECK
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import kept_world as world
from tests.integration.core import wait_until


@pytest.fixture
def deps(stack: Stack, database_url: str) -> Iterator[Deps]:
    made = cli.deps(stack, database_url, buckets_of="auditrun")
    yield made
    made.database.close()
    for listed in made.storage.list_objects(made.storage.public_bucket, ""):
        made.storage.delete(made.storage.public_bucket, listed.key)


def test_what_heals_before_the_second_look_is_no_finding(
    deps: Deps, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a running system rows are in flight: one look sees them half way."""
    world.kept(deps, "whole")
    conn.execute("UPDATE renders SET cover_idx = 7")
    pauses: list[float] = []

    def heal(seconds: float) -> None:
        pauses.append(seconds)
        conn.execute("UPDATE renders SET cover_idx = 0")

    monkeypatch.setattr("tasks.audit.run.time.sleep", heal)
    report = run.run_audit(deps)

    assert report.findings == []
    assert len(pauses) == 1
    assert 20 < pauses[0] <= deps.settings.lease_seconds


def test_nothing_found_is_not_waited_for(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean audit takes as long as its reading."""
    world.kept(deps, "whole")
    pauses: list[float] = []
    monkeypatch.setattr("tasks.audit.run.time.sleep", pauses.append)

    run.run_audit(deps)

    assert pauses == []


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every page hold one row, or one job's objects, and every page be saved."""
    monkeypatch.setattr(rows, "PAGE", 1)
    monkeypatch.setattr(objects, "PAGE", 1)
    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", 0.0)


def pages_until_gone(monkeypatch: pytest.MonkeyPatch, pages: int) -> Callable[[], None]:
    """Let PostgreSQL go away after so many pages of rows or objects; returns what brings it back."""
    left = Counter(pages=pages)
    whole = {kind: kind.page for kind in (rows.RowScan, objects.ObjectScan)}

    def limited(kind: type) -> Callable[..., Page]:
        def page(self: object, after: str) -> Page:
            left["pages"] -= 1
            if left["pages"] < 0:
                raise DatabaseUnavailable("PostgreSQL went away")
            return whole[kind](self, after)

        return page

    for kind in whole:
        monkeypatch.setattr(kind, "page", limited(kind))
    return lambda: left.update(pages=10_000)


@pytest.mark.parametrize("pages", [0, 9, 37, 40])
def test_an_interrupted_audit_goes_on_where_it_was(
    deps: Deps, conn: Connection, monkeypatch: pytest.MonkeyPatch, small_pages: None, pages: int
) -> None:
    """A run over millions of rows is not begun again for a restart of PostgreSQL."""
    for number in range(3):
        world.kept(deps, f"job{number}")
    conn.execute("UPDATE renders SET cover_idx = 7")
    whole = run.run_audit(deps, second_look_seconds=0.0)
    back = pages_until_gone(monkeypatch, pages)

    with pytest.raises(DatabaseUnavailable):
        run.run_audit(deps, second_look_seconds=0.0)
    back()
    resumed = run.run_audit(deps, second_look_seconds=0.0, resume=True)

    assert resumed.findings == whole.findings
    assert len(whole.findings) == 3
    assert resumed.checked == whole.checked
    assert resumed.interruptions == 1
    assert resumed.started_at < resumed.ended_at
    with pytest.raises(Refused):
        run.run_audit(deps, resume=True)


def test_a_report_of_many_findings_stays_short(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much to list is counted."""
    progress = checkpoint.start_progress(deps, deep=False, sample=0)
    page = Page()
    for number in range(MAX_LISTED + 5):
        page.add(Finding(3, "render", str(number), "x", "3 renders cover"))

    progress.add_page(page)
    progress.add_page(page)

    assert len(progress.findings) == MAX_LISTED
    assert progress.found == {"3 renders cover": 2 * (MAX_LISTED + 5)}


def test_a_sample_is_drawn_of_all_and_evenly(deps: Deps) -> None:
    """A sample of the oldest files would never see a new one."""
    drawn: Counter[str] = Counter()

    for _ in range(400):
        progress = checkpoint.start_progress(deps, deep=False, sample=2)
        progress.add_page(Page(kept=["a", "b"]))
        progress.add_page(Page(kept=["c", "d"]))
        drawn.update(progress.drawn)

    assert sum(drawn.values()) == 800
    assert all(130 < drawn[name] < 270 for name in "abcd")


def test_every_check_has_its_advice_and_every_repair_its_check() -> None:
    """A finding that says nothing of what to do wakes a person for nothing."""
    objects = {"4 objects missing", "4 objects size", "4 objects digest", "4 sample digest", "5 objects unnamed"}
    inputs = {"5 inputs unnamed", "5 uploads unnamed", *advice.UPLOAD_ADVICE}
    checks = {*rules.CHECKS, DOCUMENT_CHECK, *objects, *inputs}

    assert {check.split()[2] for check in checks} == set(advice.ADVICE)
    assert checks >= advice.REPAIRABLE
    assert {int(check.split()[0]) for check in checks} == set(advice.RULES)


def test_the_command_prints_a_document_for_programs(
    deps: Deps, conn: Connection, stack: Stack, database_url: str
) -> None:
    """A monitor reads it: fields stay, the exit status tells."""
    world.kept(deps, "abc")
    env = cli.environment(stack, database_url, buckets_of="auditrun")
    conn.execute("UPDATE renders SET owner = 'thief'")

    answered = cli.run(env, "audit", "--second-look", "0", "--json")

    told = json.loads(answered.stdout)
    assert answered.returncode == 1
    assert told["version"] == 1
    assert [(f["rule"], f["subject"], f["check"]) for f in told["findings"]] == [(3, "render", "3 renders owner")]
    assert all(finding["todo"] for finding in told["findings"])
    assert [(rule["rule"], rule["findings"]) for rule in told["rules"]] == [(n, int(n == 3)) for n in range(1, 10)]
    assert told["checked"]["renders"] == 1


def test_the_command_repairs_only_when_told_to(deps: Deps, conn: Connection, stack: Stack, database_url: str) -> None:
    """It asks first; what it did is in its exit status."""
    world.kept(deps, "abc", project_id="p", scene=1)
    env = cli.environment(stack, database_url, buckets_of="auditrun")
    conn.execute("DELETE FROM placements")

    refused = cli.run(env, "audit", "--second-look", "0", "--repair", stdin="n\n")
    left = conn.execute("SELECT count(*) AS n FROM placements").fetchall()
    done = cli.run(env, "audit", "--second-look", "0", "--repair", "--yes")
    clean = cli.run(env, "audit", "--second-look", "0")

    assert (refused.returncode, left) == (1, [{"n": 0}])
    assert (done.returncode, clean.returncode) == (0, 0), done.stdout + done.stderr
    assert "1 of 1 repaired" in done.stdout


def test_a_stopped_command_is_resumed(deps: Deps, conn: Connection, stack: Stack, database_url: str) -> None:
    """SIGTERM while it waits for its second look: status 2, and nothing is looked at twice."""
    world.kept(deps, "abc")
    env = cli.environment(stack, database_url, buckets_of="auditrun")
    conn.execute("UPDATE renders SET owner = 'thief'")
    command = [sys.executable, "-m", "cli.main", "audit", "--second-look", "60"]
    place = "SELECT FROM cursors WHERE sweep = 'audit' AND jsonb_array_length(facts -> 'findings') > 0"

    with subprocess.Popen(command, env=env, cwd=cli.ROOT, stderr=subprocess.PIPE, text=True) as running:
        wait_until(lambda: conn.execute(place).fetchall())
        os.kill(running.pid, signal.SIGTERM)
        _, said = running.communicate(timeout=30)
    resumed = cli.run(env, "audit", "--second-look", "0", "--resume")
    again = cli.run(env, "audit", "--resume")

    assert (running.returncode, resumed.returncode, again.returncode) == (2, 1, 2)
    assert "moorage audit --resume" in said
    assert "resumed 1 times" in resumed.stdout
    assert "its owner is not its job's" in resumed.stdout
