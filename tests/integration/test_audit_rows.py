"""The audit names every damage that is done to the rows by hand, and says nothing of rows that are right."""

import itertools
from collections.abc import Iterator

import pytest

from db import audit as rules
from db.connect import Connection
from embedded.stack import Stack
from moorage.model import Wake
from tasks import audit, failures, ingest, replay
from tasks.deps import Deps
from tests.integration import command_line as cli
from tests.integration import kept_world as world

_numbers = itertools.count(1)


@pytest.fixture
def deps(stack: Stack, database_url: str) -> Iterator[Deps]:
    made = cli.deps(stack, database_url)
    yield made
    made.database.close()


def run(deps: Deps) -> list[tuple[int, str]]:
    """Return rule and subject of what belongs to this test's rows; the bucket is shared with other tests."""
    found = audit.run(deps, second_look_seconds=0.0).findings
    return [(finding.rule, finding.subject) for finding in found if finding.subject != "object"]


def a_varied_world(deps: Deps) -> None:
    """Succeeded, partial, failed, running and unmatched; a dead letter open, one discarded, one replayed."""
    world.kept(deps, "whole", [world.picture("red"), world.picture("blue")], project_id="p", scene=1)
    world.kept(deps, "part", [world.picture("green"), "https://evil.example/x.png"])
    world.kept(deps, "none", ["https://evil.example/y.png"])
    cli.register_one(deps, "running")
    world.work(deps, world.deliver(deps, b"not json"))
    world.work(deps, world.deliver(deps, {"id": "nobody", "status": "succeeded", "output": []}))
    letters = deps.database.run(lambda c: c.execute("SELECT id, subject FROM dead_letters ORDER BY id").fetchall())
    delivery = next(row["id"] for row in letters if row["subject"] == "delivery")
    deps.database.run(lambda c: replay.discard(c, delivery, "cli"))
    output = next(row["id"] for row in letters if row["subject"] == "output")
    wake = deps.database.run(lambda c: replay.replay(c, output, "cli"))
    assert wake is not None
    world.work(deps, wake)


def test_rows_that_are_right_give_nothing(deps: Deps) -> None:
    """An audit that cries at right data is switched off, and then notices nothing."""
    a_varied_world(deps)

    report = audit.run(deps, deep=True, second_look_seconds=0.0)

    assert [finding for finding in report.findings if finding.subject != "object"] == []
    assert report.checked["jobs"] == 4
    assert report.checked["bytes"] > 0


# name: (what is done, rule and subject that must be named)
DAMAGE = {
    "a body is lost": ("UPDATE deliveries SET body = NULL, state = 'new', run_at = moment()", (1, "delivery")),
    "a digest is another's": ("UPDATE deliveries SET webhook_id = 'sha256:' || repeat('0', 64)", (1, "delivery")),
    "a delivery is applied to nothing": ("UPDATE deliveries SET prediction_id = NULL", (1, "delivery")),
    "a delivery waits for ever": (
        "UPDATE deliveries SET state = 'unmatched', run_at = moment(), unmatched_until = moment() - interval '1 d'",
        (2, "delivery"),
    ),
    "a delivery has no time": ("UPDATE deliveries SET state = 'new', run_at = NULL", (2, "delivery")),
    "a job has no time": ("UPDATE jobs SET state = 'open', run_at = NULL", (2, "job")),
    "a prediction has no time": ("UPDATE predictions SET state = 'running', run_at = NULL", (2, "prediction")),
    "an output has no time": ("UPDATE outputs SET state = 'waiting', run_at = NULL", (2, "output")),
    "an output waits for a year": (
        "UPDATE outputs SET state = 'waiting', run_at = moment() + interval '1 y'",
        (2, "output"),
    ),
    "a render is lost": ("DELETE FROM renders", (3, "job")),
    "a render is unearned": ("UPDATE jobs SET state = 'failed'", (3, "render")),
    "a render has no variant": ("DELETE FROM render_variants", (3, "render")),
    "a render has no cover": ("UPDATE renders SET cover_idx = 7", (3, "render")),
    "a render has another owner": ("UPDATE renders SET owner = 'thief'", (3, "render")),
    "a variant is not kept": ("UPDATE outputs SET state = 'dead'", (3, "output")),
    "a variant stands elsewhere": ("UPDATE render_variants SET idx = idx + 5", (3, "output")),
    "a variant is lost": ("DELETE FROM render_variants WHERE idx = 1", (3, "output")),
    "a job has succeeded in part": ("UPDATE outputs SET state = 'dead' WHERE idx = 1", (3, "job")),
    "a job is not settled": ("UPDATE jobs SET state = 'keeping', settled_at = NULL, run_at = moment()", (3, "job")),
    "a thumbnail is lost": ("UPDATE outputs SET thumb_key = NULL", (4, "output")),
    "a key is another's": ("UPDATE outputs SET key = replace(key, job_id::text, id::text)", (4, "output")),
    "a lease is on what is over": (
        "UPDATE outputs SET lease_token = gen_random_uuid(), leased_by = 'x', leased_until = moment()",
        (6, "output"),
    ),
    "a lease has no end": (
        "UPDATE deliveries SET state = 'new', run_at = moment(), lease_token = gen_random_uuid(), leased_by = 'x'",
        (6, "delivery"),
    ),
    "a lease lives for ever": (
        "UPDATE outputs SET lease_token = gen_random_uuid(), leased_by = 'x', state = 'waiting', run_at = moment(),"
        " leased_until = moment() + interval '1 d'",
        (6, "output"),
    ),
    "two rows have one lease": (
        "UPDATE outputs SET lease_token = '6f1d2a3e-57c1-4b8e-9a51-5b3f8f2f7d10', leased_by = 'x', state = 'waiting',"
        " run_at = moment(), leased_until = moment()",
        (6, "output"),
    ),
    "an edge is not one": ("UPDATE events SET from_state = 'dead' WHERE to_state = 'kept'", (7, "output")),
    "an event is lost": ("DELETE FROM events WHERE subject = 'job' AND to_state = 'keeping'", (7, "job")),
    "a state is faked": ("UPDATE predictions SET state = 'failed'", (7, "prediction")),
    "a row is lost": ("DELETE FROM deliveries", (7, "delivery")),
    "an output waits in vain": ("UPDATE outputs SET state = 'waiting', run_at = moment()", (7, "output")),
    "a death is silent": ("UPDATE predictions SET state = 'lost'", (8, "prediction")),
    "a dead letter is about the living": (
        "INSERT INTO dead_letters (id, subject, subject_id, step, category, error, reason, retryable)"
        " SELECT gen_random_uuid(), 'output', id, 'keep', 'POISON', 'x', 'x', true FROM outputs",
        (8, "dead_letter"),
    ),
    "a dead letter is doubled": (
        "INSERT INTO dead_letters (id, subject, subject_id, step, category, error, reason, retryable)"
        " SELECT gen_random_uuid(), 'output', id, 'keep', 'POISON', 'x', 'x', true FROM outputs, generate_series(1, 2)",
        (8, "output"),
    ),
    "a placement is lost": ("DELETE FROM placements WHERE idx = 0", (9, "output")),
    "a placement is doubled": ("INSERT INTO placements SELECT * FROM placements", (9, "render")),
    "a placement is of nothing": ("UPDATE placements SET idx = idx + 5", (9, "render")),
    "a placement is in the wrong scene": ("UPDATE placements SET scene_key = 'id:7'", (9, "render")),
    "a document is overwritten": ("""UPDATE projects SET document = '{"scenes": [{"imageUrls": ["x"]}]}'""",
                                  (9, "project")),
}  # fmt: skip


@pytest.fixture(scope="module")
def loose_template(stack: Stack, template_database: str) -> str:
    """Return the name of a database with one kept job of a project, and without the rules of the schema."""
    name = "moorage_audit_template"
    made = cli.deps(stack, stack.postgres.create_database(name, template=template_database))
    world.kept(made, "whole", [world.picture("red"), world.picture("blue")], project_id="p", scene=1)
    world.loosen(made.database.connection())
    made.database.close()
    return name


@pytest.fixture
def loose(stack: Stack, loose_template: str) -> Iterator[Deps]:
    """Return what an audit needs, over a fresh copy of that database."""
    name = f"moorage_audit_{next(_numbers)}"
    made = cli.deps(stack, stack.postgres.create_database(name, template=loose_template))
    yield made
    made.database.close()


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(loose: Deps, name: str) -> None:
    """A check that never fires proves nothing: each is shown the very thing it is there for."""
    sql, expected = DAMAGE[name]
    before = run(loose)

    loose.database.run(lambda conn: conn.execute(sql.encode()))

    assert before == []
    assert expected in run(loose)


def test_every_check_is_shown_its_damage(loose: Deps) -> None:
    """A new check without its damage would be taken for a proof."""
    conn = loose.database.connection()
    fired: set[str] = set()

    for sql, _ in DAMAGE.values():
        with conn.transaction(force_rollback=True):
            conn.execute(sql.encode())
            for name in rules.CHECKS:
                if rules.broken(conn, name, lease_seconds=30, limit=10):
                    fired.add(name)

    never = set(rules.CHECKS) - fired
    assert never == {"2 jobs far", "2 predictions far", "2 deliveries far", "6 predictions lease"}  # as their siblings


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

    monkeypatch.setattr("tasks.audit.time.sleep", heal)
    found = audit.run(deps, second_look_seconds=2.5).findings

    assert [finding for finding in found if finding.subject != "object"] == []
    assert pauses == [2.5]


def test_a_poisoned_delivery_that_was_unmatched_leaves_a_whole_history(deps: Deps, conn: Connection) -> None:
    """Its last event said "new" whatever it had been: the chain of its events was broken."""
    wake = world.deliver(deps, {"id": "nobody", "status": "succeeded", "output": []})
    world.work(deps, wake)
    conn.execute("UPDATE deliveries SET crashes = 5, run_at = moment()")

    failures.poison(deps, "ingest", wake.row_id, "node/task")

    assert conn.execute("SELECT state FROM deliveries").fetchall() == [{"state": "dead"}]
    assert run(deps) == []


def test_work_in_flight_is_no_finding(deps: Deps) -> None:
    """A leased output of a keeping job is the most usual sight on a running system."""
    cli.register_one(deps, "abc")
    wake = world.deliver(deps, {"id": "abc", "status": "succeeded", "output": [world.picture()]})
    wakes: list[Wake] = ingest.run(deps, world.claim(deps, wake), world.Calm())
    world.claim(deps, wakes[0])

    assert run(deps) == []
