"""Celery's own processes: as typed, two beats or none, messages nobody understands, and starts that are refused."""

import base64
import sys

import pytest
import requests

from embedded import ports
from embedded.process import Process
from simulation.stack import ROOT
from tests.acceptance.world import WORKERS, until
from tests.support import fork_server

CELERY = (sys.executable, "-m", "celery", "-A", "worker")


@pytest.mark.timeout(400)  # three processes start, and three others after them
def test_worker_beat_and_flower_run_as_typed(world, tmp_path):
    """Celery users type `celery -A worker ...` and nothing else."""
    port = ports.reserve(1)[0]
    with world.without(*WORKERS, "beat1"), Typed(world, tmp_path, port) as typed:
        told = until(lambda: told_of(typed, kept(world)), "Flower lists the steps with their row ids", seconds=120)
    assert {"moorage.keep"} == {task["name"] for task in told}


def kept(world):
    """Return the ids of two files that were kept."""
    asked = world.ask({"outputs": 2})
    world.await_end(asked)
    assert world.job(asked)["state"] == "succeeded"
    return {str(row["id"]) for row in world.outputs(asked)}


def told_of(typed, ids):
    """Return Flower's tasks on some rows; it asks workers for events every five seconds, so early ones are unseen."""
    tasks = requests.get(f"{typed.flower}/api/tasks", auth=typed.user, timeout=30).json().values()
    found = [task for task in tasks if any(row_id in str(task["args"]) for row_id in ids)]
    return found if len(found) >= len(ids) else None


class Typed:
    """The three commands, as processes of their own."""

    def __init__(self, world, folder, port):
        self.flower = f"http://127.0.0.1:{port}"
        environment = {**world.local.environment(), "FLOWER_PORT": str(port)}
        self.user = tuple(environment["FLOWER_BASIC_AUTH"].split(":", 1))
        self.processes = [
            Process(
                [*CELERY, command],
                env=environment,
                cwd=ROOT,
                log_path=folder / f"{command}.log",
                name=command,
                ready=self._answers if command == "flower" else None,
            )
            for command in ("flower", "worker", "beat")
        ]

    def _answers(self):
        try:
            return requests.get(f"{self.flower}/healthcheck", timeout=5).status_code == 200
        except requests.RequestException:
            return False

    def __enter__(self):
        for process in self.processes:
            process.start()
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.stop()


def test_two_beats_tick_each_slot_once(world, tmp_path):
    """High availability of the clock is a second clock."""
    count = "SELECT count(*) AS n, max(slot) - min(slot) + 1 AS slots FROM ticks WHERE sweep = 'dispatch'"
    newest = "SELECT max(slot) AS slot FROM ticks WHERE sweep = 'dispatch'"
    second = Process([*CELERY, "beat"], env=world.local.environment(), cwd=ROOT, log_path=tmp_path / "beat2.log")
    second.start()
    try:
        until(lambda: "is starting" in second.read_log(), "the second beat has started")
        first = world.one(newest)["slot"]

        until(lambda: world.one(newest)["slot"] >= first + 3, "three more ticks")

        assert world.one(count)["n"] <= world.one(count)["slots"]
        assert second.is_running
        assert world.local.processes["beat1"].is_running
    finally:
        second.stop()


def test_without_a_beat_work_still_flows(world):
    """Sweeps only find what was lost; what is not lost needs no clock."""
    with world.without("beat1"):
        asked = [world.ask({"outputs": 2, "duration_s": 0.5}) for _ in range(3)]

        world.await_end(*asked)

        for one in asked:
            assert world.job(one)["state"] == "succeeded"


MESSAGES = {
    "a body that is not JSON": (b"{never", {"task": "moorage.keep"}),
    "a body that is not UTF-8": (b"\xff\xfe", {"task": "moorage.keep"}),
    "a task nobody knows": (b"[[], {}, {}]", {"task": "no.such.task"}),
    "no task at all": (b'{"hello": 1}', {}),
    "a step of no row": (b'[["no id"], {}, {}]', {"task": "moorage.gone"}),
}


@pytest.mark.parametrize("queue", ["quick", "keep"])
@pytest.mark.parametrize("kind", MESSAGES)
def test_a_message_nobody_understands_becomes_a_dead_letter(world, queue, kind):
    """Celery drops such messages with a log line; here a person hears of them, and the worker lives."""
    before = world.pids()
    body, headers = MESSAGES[kind]
    named = {"id": "6a1f", "lang": "py", "argsrepr": "()", "kwargsrepr": "{}", **headers} if headers else {}
    since = world.one("SELECT clock_timestamp() AS at")["at"]

    world.push(queue, {"body": base64.b64encode(body + queue.encode() * (kind == "no task at all")).decode()}, **named)

    fresh = "SELECT facts ->> 'queue' AS queue FROM dead_letters WHERE subject = 'message' AND created_at > %(at)s"
    found = until(lambda: world.rows(fresh, at=since) or is_known(world, queue, body), "a dead letter")
    assert found
    assert world.pids() == before


def test_rubbish_that_is_no_message_at_all_stops_nobody(world):
    """Whatever else writes into the broker's database, the workers live and go on."""
    before = world.pids()
    rubbish = {b"\xff no message", b"no message", b"{}"}
    with world.broker() as client:
        for queue in ("keep", "quick"):
            client.lpush(queue, *rubbish)
        until(lambda: not rubbish & {*client.lrange("keep", 0, -1), *client.lrange("quick", 0, -1)}, "all was taken")

    asked = world.ask({"outputs": 2})
    world.await_end(asked)

    world.check(asked)
    assert world.pids() == before


def is_known(world, queue, body):
    """The same bytes in the other queue are the same dead letter."""
    said = "SELECT 1 FROM dead_letters WHERE subject = 'message' AND facts ->> 'body' LIKE %(b)s"
    return world.depth(queue) == 0 and world.rows(said, b=f"%{body.decode(errors='replace')}%")


REFUSED = {
    "a misspelt setting": ({"MOORAGE_LEASE_SECNDS": "5"}, "did you mean MOORAGE_LEASE_SECONDS"),
    "a wrong setting": ({"MOORAGE_LEASE_SECONDS": "soon"}, "MOORAGE_LEASE_SECONDS"),
    "a missing setting": ({"DATABASE_URL": ""}, "DATABASE_URL"),
    "an empty database": ({"DATABASE_URL": "{empty}"}, "run moorage migrate"),
    "keys that storage refuses": ({"AWS_SECRET_ACCESS_KEY": "wrong" * 8}, "moorage-public"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_worker_refuses_to_start_on(world, what):
    """A worker that runs half configured loses work quietly; one line says what to do instead."""
    changed, says = REFUSED[what]
    empty = world.local.stack.postgres.create_database("never_migrated") if "empty" in what else ""
    environment = {**world.local.environment(), **{k: v.format(empty=empty) for k, v in changed.items()}}

    command = ["-m", "celery", "-A", "worker", "worker", "-Q", "quick", "-n", "refused@%h"]
    done = fork_server.run(command, cwd=ROOT, env=environment)

    assert done.returncode not in (0, None)
    assert says in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    if empty:
        world.local.stack.postgres.drop_database("never_migrated")
