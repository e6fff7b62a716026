"""The ledger check of drill and demo, and the drill's verdict: each must report every damage."""

import hashlib
import io
import itertools
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from db.connection import Connection
from embedded.stack import Stack
from simulation.cases import Case, CaseRun
from simulation.chaos.load import draw_job_request
from simulation.chaos.targets import Fault
from simulation.chaos.verdict import judge_drill
from simulation.job_check import Verdict
from simulation.ledger_check import check_ledger
from storage import keys
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import kept_world as world

Damage = Callable[[Deps, Connection, dict[str, Any]], None]


@pytest.fixture
def deps(stack: Stack, database_url: str) -> Iterator[Deps]:
    deps = cli.deps(stack, database_url, buckets_of="drill")
    for item in list(deps.storage.list_objects(deps.storage.public_bucket, keys.RENDER_PREFIX)):
        deps.storage.delete(deps.storage.public_bucket, item.key)
    yield deps
    deps.database.close()


def build_ledger(conn: Connection) -> dict[str, Any]:
    """Return the ledger of a stand-in for the only job in the database."""
    rows = conn.execute("SELECT o.path, o.sha256, o.bytes FROM outputs o ORDER BY idx").fetchall()
    deliveries = conn.execute("SELECT webhook_id FROM deliveries").fetchall()
    outputs = [{"prediction": "abc", "fault": "", **row} for row in rows]
    return {
        "summary": {
            "acknowledged": {row["webhook_id"]: {} for row in deliveries},
            "unacknowledged": {},
            "wrongly_signed_accepted": [],
            "expected": {"kept": outputs, "dead": [], "preview": []},
            "traps": 0,
        },
        "lines": [],
    }


def landed_fault(kind: str, began_at: float, ended_at: float, victim: str) -> Fault:
    return Fault(victim=victim, kind=kind, began_at=began_at, ended_at=ended_at)


def judged(
    deps: Deps,
    conn: Connection,
    ledger: dict[str, Any],
    landed: list[Fault] | None = None,
    requested: list[CaseRun] | None = None,
) -> Verdict:
    runs = [CaseRun(Case("the job", input={}), external_id="abc"), *(requested or [])]
    return judge_drill(conn, deps.storage, ledger, runs, landed or [])


def lose_a_webhook(deps: Deps, conn: Connection, ledger: dict[str, Any]) -> None:
    ledger["summary"]["acknowledged"]["msg_never_recorded"] = {}


def lose_a_variant(deps: Deps, conn: Connection, ledger: dict[str, Any]) -> None:
    conn.execute("DELETE FROM placements")
    conn.execute("DELETE FROM render_variants")


def lose_an_object(deps: Deps, conn: Connection, ledger: dict[str, Any]) -> None:
    row = conn.execute("SELECT key FROM outputs").fetchone()
    assert row is not None
    deps.storage.delete(deps.storage.public_bucket, row["key"])


def lose_a_file(deps: Deps, conn: Connection, ledger: dict[str, Any]) -> None:
    ledger["summary"]["expected"]["kept"].append({"prediction": "abc", "path": "output[7]", "fault": ""})


def double_a_webhook(deps: Deps, conn: Connection, ledger: dict[str, Any]) -> None:
    world.loosen(conn)
    conn.execute(
        "INSERT INTO deliveries (id, provider, webhook_id, body_sha256, state, run_at, ended_at)"
        " SELECT gen_random_uuid(), provider, webhook_id, body_sha256, state, run_at, ended_at FROM deliveries"
    )


def change_the_bytes(deps: Deps, conn: Connection, ledger: dict[str, Any]) -> None:
    ledger["summary"]["expected"]["kept"][0]["sha256"] = hashlib.sha256(b"other").hexdigest()


def end_a_job_wrongly(deps: Deps, conn: Connection, ledger: dict[str, Any]) -> None:
    conn.execute("UPDATE jobs SET state = 'partial'")


def visit_the_trap(deps: Deps, conn: Connection, ledger: dict[str, Any]) -> None:
    ledger["summary"]["traps"] = 1


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (lose_a_webhook, "lost"),
        (lose_a_variant, "lost"),
        (lose_an_object, "lost"),
        (lose_a_file, "lost"),
        (double_a_webhook, "doubled"),
        (change_the_bytes, "unexpected"),
        (end_a_job_wrongly, "unexpected"),
        (visit_the_trap, "unexpected"),
    ],
)
def test_a_damage_is_reported(deps: Deps, conn: Connection, damage: Damage, kind: str) -> None:
    """A drill that cannot fail proves nothing."""
    world.kept(deps)
    ledger = build_ledger(conn)
    clean = judged(deps, conn, ledger)
    assert (clean.is_clean, clean.files) == (True, 1)

    damage(deps, conn, ledger)

    damaged = judged(deps, conn, ledger)
    assert not damaged.is_clean
    assert getattr(damaged, kind)


def test_a_clock_jump_is_no_excuse_for_a_file(deps: Deps, conn: Connection) -> None:
    """The clock alone ends no file: one that was given up as expired is lost, whatever the clock did."""
    world.kept(deps)
    ledger = build_ledger(conn)
    world.loosen(conn)
    conn.execute("DELETE FROM placements")
    conn.execute("DELETE FROM render_variants")
    conn.execute("UPDATE outputs SET state = 'dead', source_expired = true")

    verdict = judged(deps, conn, ledger, [landed_fault("clock jump", time.time() - 300, time.time(), "")])

    assert any("abc output[0]: dead" in finding for finding in verdict.lost)


def test_a_repeat_needs_a_fault_to_explain_it(deps: Deps, conn: Connection) -> None:
    """An unexplained attempt is a bug that the drill would otherwise hide."""
    job_id = world.kept(deps)
    conn.execute(
        "INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)"
        " SELECT 'output', id, job_id, 'waiting', 'waiting', 'why?', 'node/task' FROM outputs WHERE job_id = %s",
        [job_id],
    )
    ledger = build_ledger(conn)

    unexplained = judged(deps, conn, ledger)
    explained = judged(deps, conn, ledger, [landed_fault("worker killed", time.time() - 300, time.time(), "keep1")])

    assert len(unexplained.unexplained) == 1
    assert explained.is_clean


def test_more_deaths_than_kills_are_not_explained_by_the_time_of_one(deps: Deps, conn: Connection) -> None:
    """With a fault every two seconds, the time alone would also explain a decoder that crashes by itself."""
    job_id = world.kept(deps)
    ledger, times = build_ledger(conn), (time.time() - 300, time.time())
    died = """
    INSERT INTO events (subject, subject_id, job_id, from_state, to_state, kind, actor)
    SELECT 'output', id, job_id, 'waiting', 'waiting', 'worker_died', %s FROM outputs WHERE job_id = %s
    """

    conn.execute(died, ["keep1@host/one task", job_id])
    once = judged(deps, conn, ledger, [landed_fault("pool child killed", *times, "keep1")])
    conn.execute(died, ["keep1@host/another", job_id])
    twice = judged(deps, conn, ledger, [landed_fault("pool child killed", *times, "keep1")])

    assert once.is_clean
    assert twice.unexplained == ["keep1: 2 processes died during work, and 1 were killed"]


def test_a_repeat_in_a_clock_jump_has_the_time_of_the_jumped_clock(deps: Deps, conn: Connection) -> None:
    """The repeats of other faults during the jump would be unexplained otherwise."""
    job_id = world.kept(deps)
    conn.execute(
        "INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor, at)"
        " SELECT 'output', id, job_id, 'waiting', 'waiting', 'why?', 'node/task', moment() + interval '1 hour'"
        " FROM outputs WHERE job_id = %s",
        [job_id],
    )
    ledger = build_ledger(conn)
    times = (time.time() - 300, time.time())

    unexplained = judged(deps, conn, ledger, [landed_fault("storage killed", *times, "seaweedfs")])
    explained = judged(deps, conn, ledger, [landed_fault("clock jump", *times, "postgres")])

    assert len(unexplained.unexplained) == 1
    assert explained.unexplained == []


def test_webhooks_must_be_ingested_while_storage_is_away(deps: Deps, conn: Connection) -> None:
    """A worker that waits for storage at its start ingests none, and nothing is lost: only the time shows it."""
    world.kept(deps)
    ledger, now = build_ledger(conn), time.time()
    fault = landed_fault("quick without storage", now - 10, now + 60, "quick")
    ingested = judged(deps, conn, ledger, [fault])

    conn.execute("UPDATE deliveries SET ended_at = ended_at + interval '5 min'")

    assert ingested.is_clean
    assert judged(deps, conn, ledger, [fault]).unexpected == [
        "none of 1 webhooks was ingested while storage was unavailable"
    ]


def test_a_webhook_of_fal_is_identified_by_its_prediction(deps: Deps, conn: Connection) -> None:
    """It has no id: the delivery stores the digest of its body instead."""
    world.kept(deps)
    ledger = build_ledger(conn)
    ledger["summary"]["acknowledged"]["msg_of_fal"] = {}
    attempt = {
        "provider": "fal",
        "webhook_id": "msg_of_fal",
        "prediction": "f1",
        "event": "completed",
        "http_status": 202,
    }
    ledger["lines"].append({"kind": "webhook", **attempt})
    missing = judged(deps, conn, ledger)
    conn.execute(
        "INSERT INTO deliveries (id, provider, webhook_id, body_sha256, external_id, state, run_at, ended_at)"
        " VALUES (gen_random_uuid(), 'fal', 'sha256:00', '00', 'f1', 'applied', NULL, moment())"
    )

    assert missing.lost == ["webhook f1 was acknowledged and is not recorded"]
    assert judged(deps, conn, ledger).is_clean


ANOTHER_SUBMISSION = """
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
SELECT 'prediction', p.id, p.job_id, %s, %s, 'why?', 'node/task' FROM predictions p
"""


@pytest.mark.parametrize("edge", [("submitting", "planned"), ("submitting", "submitting")])
def test_a_repeated_submission_needs_a_fault_or_a_script_with_one(
    deps: Deps, conn: Connection, edge: tuple[str, str]
) -> None:
    """A submission without a reason to repeat may be duplicated; a faulty submission by its script is a reason."""
    world.kept(deps)
    case = next(c for c in _draw() if c.chain[0].is_troubled and c.chain[0].failure is None)
    conn.execute("UPDATE jobs SET fallback_chain = %s", (Jsonb(case.build_request()["chain"]),))
    conn.execute("UPDATE predictions SET entry = 0, submitted_at = moment()")
    conn.execute(ANOTHER_SUBMISSION, edge)
    ledger = build_ledger(conn)

    unexplained = judged(deps, conn, ledger)
    explained = judged(deps, conn, ledger, requested=[CaseRun(case, ("job",))])

    assert len(unexplained.unexplained) == 1
    assert explained.unexplained == []


def _draw() -> Iterator[Case]:
    rng = random.Random(7)
    return (draw_job_request(rng, number) for number in itertools.count())


def test_findings_about_job_requests_are_findings_of_the_drill(deps: Deps, conn: Connection) -> None:
    """A lost job request is as bad as a lost registration."""
    world.kept(deps)

    verdict = judged(deps, conn, build_ledger(conn), requested=[CaseRun(next(_draw()), ("job",))])

    assert not verdict.is_clean
    assert verdict.lost == ["job request 0 was acknowledged and has no job"]
    assert verdict.job_requests.sent == 1


def never_acknowledge(ledger: dict[str, Any]) -> None:
    summary = ledger["summary"]
    summary["unacknowledged"], summary["acknowledged"] = summary["acknowledged"], {}


def create_an_unknown_prediction(ledger: dict[str, Any]) -> None:
    line = {"kind": "prediction", "prediction": "unknown", "provider": "fal", "prompt": "a boat", "key": None}
    ledger["lines"].append(line)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (never_acknowledge, "was never acknowledged"),
        (create_an_unknown_prediction, "created unknown, which is unknown"),
    ],
)
def test_what_a_fault_may_cause_is_a_finding_without_faults(
    deps: Deps, conn: Connection, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """The demo is a drill without faults: no response is lost, and every prediction is known."""
    world.kept(deps)
    ledger, runs = build_ledger(conn), [CaseRun(Case("the job", input={}), external_id="abc")]
    assert check_ledger(conn, deps.storage, ledger, runs).is_clean

    change(ledger)

    assert judged(deps, conn, ledger).is_clean
    [finding] = check_ledger(conn, deps.storage, ledger, runs).unexpected
    assert message in finding


def test_an_object_without_a_row_is_an_orphan_and_no_loss(deps: Deps, conn: Connection) -> None:
    """The object of a worker that died stays until the next sweep: counted after a drill, a finding in the demo."""
    world.kept(deps)
    data = b"left behind"
    deps.storage.put(
        deps.storage.public_bucket,
        f"{keys.RENDER_PREFIX}left-behind",
        io.BytesIO(data),
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        content_type="application/octet-stream",
    )

    ledger = build_ledger(conn)
    verdict = judged(deps, conn, ledger)
    strict = check_ledger(conn, deps.storage, ledger, [CaseRun(Case("the job", input={}), external_id="abc")])

    assert verdict.is_clean
    assert verdict.orphans == 1
    assert strict.unexpected == [f"object {keys.RENDER_PREFIX}left-behind has no row"]
