"""The drill's verdict must notice what it is for: each damage done by hand is named."""

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
from simulation.chaos import verdict
from simulation.chaos.schedule import Landed
from simulation.chaos.submission_load import Order, Ordered, draw
from simulation.demo.registered import Started
from simulation.demo.registered_cases import Case
from storage import keys
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import kept_world as world

Damage = Callable[[Deps, Connection, dict[str, Any]], None]


@pytest.fixture
def deps(stack: Stack, database_url: str) -> Iterator[Deps]:
    made = cli.deps(stack, database_url, buckets_of="drill")
    for item in list(made.blobs.list(made.blobs.public_bucket, keys.RENDERS)):
        made.blobs.delete(made.blobs.public_bucket, item.key)
    yield made
    made.database.close()


def ledger(conn: Connection) -> dict[str, Any]:
    """Return what a stand-in would have written of the one job in the database."""
    rows = conn.execute("SELECT o.path, o.sha256, o.bytes FROM outputs o ORDER BY idx").fetchall()
    sent = conn.execute("SELECT webhook_id FROM deliveries").fetchall()
    outputs = [{"prediction": "abc", "fault": "", **row} for row in rows]
    return {
        "summary": {
            "acknowledged": {row["webhook_id"]: {} for row in sent},
            "unacknowledged": {},
            "wrongly_signed_accepted": [],
            "expected": {"kept": outputs, "dead": [], "preview": []},
            "traps": 0,
        },
        "lines": [],
    }


def judged(
    deps: Deps,
    conn: Connection,
    told: dict[str, Any],
    landed: list[Landed] | None = None,
    ordered: list[Ordered] | None = None,
) -> verdict.Verdict:
    started = [Started(Case("the job", {}), "abc", "job")]
    return verdict.judge(conn, deps.blobs, told, started, ordered or [], landed or [])


def lose_a_webhook(deps: Deps, conn: Connection, told: dict[str, Any]) -> None:
    told["summary"]["acknowledged"]["msg_never_recorded"] = {}


def lose_a_variant(deps: Deps, conn: Connection, told: dict[str, Any]) -> None:
    conn.execute("DELETE FROM placements")
    conn.execute("DELETE FROM render_variants")


def lose_an_object(deps: Deps, conn: Connection, told: dict[str, Any]) -> None:
    row = conn.execute("SELECT key FROM outputs").fetchone()
    assert row is not None
    deps.blobs.delete(deps.blobs.public_bucket, row["key"])


def lose_a_file(deps: Deps, conn: Connection, told: dict[str, Any]) -> None:
    told["summary"]["expected"]["kept"].append({"prediction": "abc", "path": "output[7]", "fault": ""})


def double_a_webhook(deps: Deps, conn: Connection, told: dict[str, Any]) -> None:
    world.loosen(conn)
    conn.execute(
        "INSERT INTO deliveries (id, provider, webhook_id, body_sha256, state, run_at, ended_at)"
        " SELECT gen_random_uuid(), provider, webhook_id, body_sha256, state, run_at, ended_at FROM deliveries"
    )


def change_the_bytes(deps: Deps, conn: Connection, told: dict[str, Any]) -> None:
    told["summary"]["expected"]["kept"][0]["sha256"] = hashlib.sha256(b"other").hexdigest()


def end_a_job_wrongly(deps: Deps, conn: Connection, told: dict[str, Any]) -> None:
    conn.execute("UPDATE jobs SET state = 'partial'")


def visit_the_trap(deps: Deps, conn: Connection, told: dict[str, Any]) -> None:
    told["summary"]["traps"] = 1


@pytest.mark.parametrize(
    ("damage", "named"),
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
def test_a_damage_is_named(deps: Deps, conn: Connection, damage: Damage, named: str) -> None:
    """A drill that cannot fail proves nothing."""
    world.kept(deps)
    told = ledger(conn)
    clean = judged(deps, conn, told)
    assert (clean.is_clean, clean.files) == (True, 1)

    damage(deps, conn, told)

    found = judged(deps, conn, told)
    assert not found.is_clean
    assert getattr(found, named)


def test_a_repeat_needs_a_fault_to_explain_it(deps: Deps, conn: Connection) -> None:
    """An attempt that nothing explains is a bug that the drill would otherwise hide."""
    job_id = world.kept(deps)
    conn.execute(
        "INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)"
        " SELECT 'output', id, job_id, 'waiting', 'waiting', 'why?', 'node/task' FROM outputs WHERE job_id = %s",
        [job_id],
    )
    told = ledger(conn)

    unexplained = judged(deps, conn, told)
    explained = judged(deps, conn, told, [Landed("worker killed", time.time() - 300, time.time(), "keep1")])

    assert len(unexplained.unexplained) == 1
    assert explained.is_clean


def test_more_deaths_than_kills_are_not_explained_by_the_time_of_one(deps: Deps, conn: Connection) -> None:
    """With a fault every two seconds each moment lies behind one: a decoder that crashes by itself would hide there."""
    job_id = world.kept(deps)
    told, moments = ledger(conn), (time.time() - 300, time.time())
    died = """
    INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
    SELECT 'output', id, job_id, 'waiting', 'waiting', 'its process died: signal 11', 'keep1@host/task' FROM outputs
     WHERE job_id = %s
    """

    conn.execute(died, [job_id])
    once = judged(deps, conn, told, [Landed("pool child killed", *moments, "keep1")])
    conn.execute(died, [job_id])
    twice = judged(deps, conn, told, [Landed("pool child killed", *moments, "keep1")])

    assert once.is_clean
    assert twice.unexplained == ["keep1: 2 processes died at their work, and 1 were killed"]


def test_a_repeat_in_a_clock_jump_carries_the_hour_of_the_jumped_clock(deps: Deps, conn: Connection) -> None:
    """Another fault in the same seconds would look as if nothing had explained what it did."""
    job_id = world.kept(deps)
    conn.execute(
        "INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor, at)"
        " SELECT 'output', id, job_id, 'waiting', 'waiting', 'why?', 'node/task', moment() + interval '1 hour'"
        " FROM outputs WHERE job_id = %s",
        [job_id],
    )
    told = ledger(conn)
    moments = (time.time() - 300, time.time())

    unexplained = judged(deps, conn, told, [Landed("storage killed", *moments, "seaweedfs")])
    explained = judged(deps, conn, told, [Landed("clock jump", *moments, "postgres")])

    assert len(unexplained.unexplained) == 1
    assert explained.unexplained == []


def test_a_webhook_of_fal_is_known_by_its_prediction(deps: Deps, conn: Connection) -> None:
    """It carries no id of its own: in our row stands the digest of its body."""
    world.kept(deps)
    told = ledger(conn)
    told["summary"]["acknowledged"]["msg_of_fal"] = {}
    about = {
        "provider": "fal",
        "webhook_id": "msg_of_fal",
        "prediction": "f1",
        "event": "completed",
        "http_status": 202,
    }
    told["lines"].append({"kind": "webhook", **about})
    missing = judged(deps, conn, told)
    conn.execute(
        "INSERT INTO deliveries (id, provider, webhook_id, body_sha256, external_id, state, run_at, ended_at)"
        " VALUES (gen_random_uuid(), 'fal', 'sha256:00', '00', 'f1', 'applied', NULL, moment())"
    )

    assert missing.lost == ["webhook f1 was answered 2xx"]
    assert judged(deps, conn, told).is_clean


ANOTHER_SUBMISSION = """
INSERT INTO events (subject, subject_id, job_id, from_state, to_state, reason, actor)
SELECT 'prediction', p.id, p.job_id, %s, %s, 'why?', 'node/task' FROM predictions p
"""


@pytest.mark.parametrize("edge", [("submitting", "planned"), ("submitting", "submitting")])
def test_a_submission_that_is_repeated_needs_a_fault_or_a_troubled_order(
    deps: Deps, conn: Connection, edge: tuple[str, str]
) -> None:
    """What is sent again for no reason may be made twice; orders that go wrong by their script have one."""
    world.kept(deps)
    order = next(o for o in _drawn() if o.chain[0].is_troubled and o.chain[0].fails is None)
    conn.execute("UPDATE jobs SET chain = %s", (Jsonb([entry.asked() for entry in order.chain]),))
    conn.execute("UPDATE predictions SET entry = 0, submitted_at = moment()")
    conn.execute(ANOTHER_SUBMISSION, edge)
    told = ledger(conn)

    unexplained = judged(deps, conn, told)
    explained = judged(deps, conn, told, ordered=[Ordered(order, 0.0, ("job",))])

    assert len(unexplained.unexplained) == 1
    assert explained.unexplained == []


def _drawn() -> Iterator[Order]:
    rng = random.Random(7)
    return (draw(rng, number, "p", 1) for number in itertools.count())


def test_findings_about_orders_are_findings_of_the_drill(deps: Deps, conn: Connection) -> None:
    """An order that is lost is as bad as a registration that is."""
    world.kept(deps)

    found = judged(deps, conn, ledger(conn), ordered=[Ordered(next(_drawn()), 0.0, ("job",))])

    assert not found.is_clean
    assert found.lost == ["order 0 was acknowledged and has no job"]
    assert found.orders.sent == 1


def test_an_object_without_a_row_is_an_orphan_and_no_loss(deps: Deps, conn: Connection) -> None:
    """An upload of a worker that died lies about until the next sweep: counted, not hidden."""
    world.kept(deps)
    data = b"left behind"
    deps.blobs.put(
        deps.blobs.public_bucket,
        f"{keys.RENDERS}left-behind",
        io.BytesIO(data),
        size=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        content_type="application/octet-stream",
    )

    found = judged(deps, conn, ledger(conn))

    assert found.is_clean
    assert found.orphans == 1
