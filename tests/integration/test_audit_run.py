"""How an audit runs: its pages, its second look, its sample, and what the command prints."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from uuid import UUID

import pytest

from db.audit import checks as rules
from db.audit.check import Check
from db.connection import Connection
from db.objects import sample_kept_outputs
from embedded.stack import Stack
from tasks.audit import advice, objects, rows, run
from tasks.audit.findings import MAX_LISTED, Finding, Tally
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
    progress: list[str] = []
    report = run.run_audit(deps, report_progress=progress.append)

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


def test_small_pages_report_what_large_pages_report(
    deps: Deps, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row is skipped or checked twice where one page ends and the next begins."""
    for number in range(3):
        world.kept(deps, f"job{number}")
    conn.execute("UPDATE renders SET cover_idx = 7")
    large = run.run_audit(deps, second_look_seconds=0.0)
    monkeypatch.setattr(rows, "PAGE", 1)
    monkeypatch.setattr(objects, "PAGE", 1)

    small = run.run_audit(deps, second_look_seconds=0.0)

    assert small.findings == large.findings
    assert len(large.findings) == 3
    assert small.checked == large.checked
    assert small.started_at < small.ended_at


def test_a_report_of_many_findings_stays_short() -> None:
    """What is too much to list is counted."""
    tally = Tally()

    for number in range(MAX_LISTED + 5):
        tally.add(Finding(3, "render", str(number), "x", Check(3, "renders", "cover")))

    assert len(tally.findings) == MAX_LISTED
    assert tally.found == {Check(3, "renders", "cover"): MAX_LISTED + 5}


def test_a_sample_is_drawn_of_all_and_evenly(deps: Deps, conn: Connection) -> None:
    """A sample of the oldest files would never see a new one."""
    for number in range(4):
        world.kept(deps, f"job{number}")
    drawn: Counter[UUID] = Counter()

    for _ in range(400):
        drawn.update(sample_kept_outputs(conn, 2))

    assert sum(drawn.values()) == 800
    assert len(drawn) == 4
    assert all(130 < count < 270 for count in drawn.values())


def test_every_check_has_its_advice_and_every_repair_its_check() -> None:
    """A finding that says nothing of what to do wakes a person for nothing."""
    objects = {
        *(Check(4, "objects", code) for code in ("missing", "size", "digest")), Check(4, "sample", "digest"),
        *(Check(5, place, "unnamed") for place in ("objects", "inputs", "uploads", "quarantine")),
        *advice.OBJECT_ADVICE,
    }  # fmt: skip
    checks = {*rules.CHECKS, DOCUMENT_CHECK, *objects}

    assert {check.code for check in checks} == set(advice.ADVICE)
    assert checks >= advice.REPAIRABLE
    assert {check.rule for check in checks} == set(advice.RULES)


def test_the_advice_for_an_orphan_names_the_cap_of_the_sweep(deps: Deps) -> None:
    """After a great deletion it runs each night, and has not come to all of them."""
    assert f"more than {deps.settings.constants.orphans_per_run:,} of a kind" in advice.ADVICE["unnamed"]


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
    assert "2 of 2 repaired" in done.stdout  # the placement, and the document that showed it


def test_a_stopped_command_did_not_finish(deps: Deps, conn: Connection, stack: Stack, database_url: str) -> None:
    """SIGTERM while it waits for its second look: status 2, and no report."""
    world.kept(deps, "abc")
    env = cli.environment(stack, database_url, buckets_of="auditrun")
    conn.execute("UPDATE renders SET owner = 'thief'")
    command = [sys.executable, "-m", "cli.main", "audit", "--second-look", "60"]
    others = [row["pid"] for row in conn.execute("SELECT pid FROM pg_stat_activity").fetchall()]
    connected = (
        "SELECT FROM pg_stat_activity WHERE datname = current_database() AND pid <> ALL(%s)"
        " AND backend_type = 'client backend'"  # not autovacuum
    )

    with subprocess.Popen(
        command, env=env, cwd=cli.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        wait_until(lambda: conn.execute(connected, (others,)).fetchall())
        os.kill(running.pid, signal.SIGTERM)
        printed, said = running.communicate(timeout=30)

    assert (running.returncode, printed) == (2, "")
    assert "the audit could not finish: interrupted" in said
