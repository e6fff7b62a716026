"""`moorage pause` and `resume`: what is paused is neither woken nor claimed, in SQL, and goes on at once afterwards."""

import json
import re
from datetime import datetime
from typing import Any

import pytest

from db import leases, output_claims, pauses, poison
from db.connection import Connection
from db.reports import metrics, status
from embedded.stack import Stack
from moorage.model import Wake
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import kept_world as kw


def waiting(deps: Deps, external_id: str = "abc") -> Wake:
    """Return the wake of an output that waits, of a prediction that succeeded at Replicate."""
    cli.register_one(deps, external_id)
    delivery = kw.deliver(deps, {"id": external_id, "status": "succeeded", "output": [kw.picture()]})
    (wake,) = kw.ingest.run(deps, kw.claim(deps, delivery), kw.Calm())
    return wake


def claim(conn: Connection, wake: Wake) -> Any:
    return leases.claim(conn, wake.step, wake.row_id, leased_by="n/t", lease_seconds=30, max_crashes=5)


def due(conn: Connection, step: str) -> list[Any]:
    if step == "keep":
        return output_claims.wake_outputs(conn, limit=100, queued=0)
    return leases.wake_due(conn, step, limit=100, queue_is_empty=True)


def pause(conn: Connection, target: str) -> None:
    pauses.add(conn, target, actor="ann", reason="they are down")


@pytest.mark.parametrize("target", ["replicate", "keep"])
def test_a_paused_output_is_neither_woken_nor_claimed(deps: Deps, conn: Connection, target: str) -> None:
    """The guard stands in SQL: a wake that is under way when the pause begins must bring nothing either."""
    wake = waiting(deps)
    pause(conn, target)

    assert due(conn, "keep") == []
    assert claim(conn, wake) is None

    pauses.remove(conn, target, "ann")
    assert due(conn, "keep") == [wake.row_id]
    assert claim(conn, wake) is not None


def test_a_pause_of_another_provider_stops_nothing(deps: Deps, conn: Connection) -> None:
    """One provider's trouble must not cost the files of the others."""
    wake = waiting(deps)
    pause(conn, "standard")

    assert due(conn, "keep") == [wake.row_id]
    assert claim(conn, wake) is not None


def test_a_paused_provider_is_not_polled_and_a_pause_of_keep_stops_no_poll(deps: Deps, conn: Connection) -> None:
    """`keep` is for our own storage: asking how predictions stand costs it nothing."""
    made = cli.register_one(deps)
    conn.execute("UPDATE predictions SET run_at = moment()")
    wake = Wake("poll", made.prediction_id)

    pause(conn, "replicate")
    assert due(conn, "poll") == []
    assert claim(conn, wake) is None

    pauses.remove(conn, "replicate", "ann")
    pause(conn, "keep")
    assert due(conn, "poll") == [made.prediction_id]
    assert claim(conn, wake) is not None


def test_objects_are_discarded_during_a_pause(deps: Deps, conn: Connection) -> None:
    """Deleting asks nothing of a provider, and a full storage may be the reason for the pause."""
    wake = waiting(deps)
    conn.execute(
        "UPDATE outputs SET state = 'discarding', media = 'video', format = 'mp4', bytes = 1,"
        " content_type = 'video/mp4', sha256 = repeat('a', 64), key = 'renders/x'"
    )
    pause(conn, "keep")
    pause(conn, "replicate")

    assert due(conn, "discard") == [wake.row_id]
    given = {"leased_by": "n/t", "lease_seconds": 30.0, "max_crashes": 5}
    assert leases.claim(conn, "discard", wake.row_id, **given) is not None


def test_webhooks_are_recorded_and_ingested_during_a_pause(deps: Deps, conn: Connection) -> None:
    """A pause may cost time and never a webhook; its rows show what will be kept."""
    pause(conn, "replicate")

    wake = waiting(deps)

    states = conn.execute("SELECT d.state AS delivery, o.state AS output FROM deliveries d, outputs o").fetchall()
    assert states == [{"delivery": "applied", "output": "waiting"}]
    assert claim(conn, wake) is None


def test_work_that_runs_is_finished(deps: Deps, conn: Connection) -> None:
    """A lease is a promise: what was fetched already is written back."""
    wake = waiting(deps)
    lease = kw.claim(deps, wake)
    pause(conn, "keep")

    kw.keep.run(deps, lease, kw.Calm())

    assert conn.execute("SELECT state FROM outputs").fetchall() == [{"state": "kept"}]


def test_a_row_that_crashed_too_often_is_left_alone_during_a_pause(deps: Deps, conn: Connection) -> None:
    """The pause may be why a person looks at it just now."""
    wake = waiting(deps)
    conn.execute("UPDATE outputs SET crashes = 5, attempt = 5")
    pause(conn, "keep")

    paused = poison.lease(conn, "keep", wake.row_id, leased_by="x", max_crashes=5)
    pauses.remove(conn, "keep", "ann")

    assert paused is None
    assert poison.lease(conn, "keep", wake.row_id, leased_by="x", max_crashes=5) is not None


def test_a_paused_row_is_not_overdue(deps: Deps, conn: Connection) -> None:
    """An alert on what a person stopped would be switched off, and stay off."""
    waiting(deps)
    conn.execute("UPDATE outputs SET run_at = moment() - interval '1 h'")
    before = _oldest(conn)["outputs"]

    pause(conn, "replicate")

    assert before == pytest.approx(3600, abs=60)
    assert _oldest(conn)["outputs"] == 0


def _oldest(conn: Connection) -> dict[str, float]:
    return {row["table"]: float(row["value"]) for row in conn.execute(metrics.OLDEST_DUE.encode()).fetchall()}


def test_the_commands_tell_what_waits_and_when_its_first_url_dies(
    stack: Stack, database_url: str, deps: Deps, conn: Connection
) -> None:
    """A pause stops no clock of the provider: whoever pauses must see how long it may last."""
    waiting(deps)
    conn.execute("UPDATE outputs SET expires_at = moment() + interval '50 min'")
    env = cli.environment(stack, database_url)

    first = cli.run(env, "pause", "replicate", "--reason", "429s \x1b[31m", "--by", "ann")
    again = cli.run(env, "pause", "replicate", "--json", "--by", "bob")
    status = json.loads(cli.run(env, "status", "--json").stdout)
    screen = cli.run(env, "status").stdout

    assert first.returncode == 0, first.stderr
    assert "replicate is paused" in first.stdout
    assert "soonest expiry  in 50 min" in first.stdout.replace("in 49 min", "in 50 min")
    assert "\x1b" not in first.stdout
    told = json.loads(again.stdout)
    assert told["changed"] is False
    assert (told["pause"]["paused_by"], told["pause"]["outputs"]) == ("ann", 1)
    (pause,) = status["pauses"]
    assert (pause["target"], pause["paused_by"], pause["outputs"], pause["predictions"]) == ("replicate", "ann", 1, 0)
    assert datetime.fromisoformat(pause["expires_at"]) > datetime.fromisoformat(status["at"])
    assert "Paused (moorage resume)" in screen


def test_resume_makes_everything_due_at_once(stack: Stack, database_url: str, deps: Deps, conn: Connection) -> None:
    """What waits out a backoff, or was woken for nothing, must not wait on when the reason is gone."""
    wake = waiting(deps)
    running = cli.register_one(deps, "running")
    conn.execute("UPDATE outputs SET run_at = moment() + interval '5 min', woken_at = moment()")
    env = cli.environment(stack, database_url)
    cli.run(env, "pause", "replicate")

    done = cli.run(env, "resume", "replicate", "--json")
    again = cli.run(env, "resume", "replicate")

    assert json.loads(done.stdout)["due"] == {"outputs": 1, "predictions": 1}
    assert output_claims.wake_outputs(conn, limit=10, queued=0) == [wake.row_id]
    assert leases.wake_due(conn, "poll", limit=10, queue_is_empty=False) == [running.prediction_id]
    assert pauses.list_pauses(conn) == []
    assert (again.returncode, again.stdout) == (0, "replicate is not paused\n")


@pytest.mark.parametrize("command", ["pause", "resume"])
def test_a_misspelt_target_is_refused_in_one_line(stack: Stack, database_url: str, command: str) -> None:
    """A pause that stops nothing is found out too late."""
    done = cli.run(cli.environment(stack, database_url), command, "replicat")

    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "use one of keep, direct, fal, openai, replicate, standard" in done.stderr


def test_reading_pauses_costs_what_is_live(conn: Connection) -> None:
    """Status is asked when there is trouble, and a big table must not make it worse."""
    conn.execute("SET enable_seqscan = off")

    plan = "\n".join(str(row["QUERY PLAN"]) for row in conn.execute(f"EXPLAIN {pauses.list_pauses.sql}".encode()))

    assert re.search("(using|on) outputs_(due|urgent|by_host|live)", plan)
    assert re.search("(using|on) predictions_(due|planned|waiting|provider_external_id_key)", plan)
    assert "Seq Scan on predictions" not in plan
    assert status.read_overview(conn, ["replicate"])["pauses"] == []
