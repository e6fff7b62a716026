"""Celery's own processes: as typed, two beats or none, messages nobody understands, and starts that are refused."""

import base64
import contextlib
import json
import re
import sys
from uuid import uuid4

import pytest
import requests

from embedded import ports
from embedded.process import Process
from tests.acceptance.flower_view import FlowerView, cause_outcomes, find_differences
from tests.acceptance.message_count import check_messages
from tests.acceptance.world import WORKERS, until
from tests.support import fork_server
from worker import queues
from worker.local_deployment import ROOT

CELERY = (sys.executable, "-m", "celery", "-A", "worker")


@pytest.mark.timeout(400)  # three processes start, and three others after them
def test_worker_beat_and_flower_run_as_typed(world, tmp_path):
    """Celery users type `celery -A worker ...` and nothing else."""
    port = ports.reserve(1)[0]
    with world.without(*WORKERS, "beat1"), Typed(world, tmp_path, port) as typed:
        flower = FlowerView(typed.flower, typed.user)
        until(lambda: told_of(flower, kept(world)), "Flower lists the steps with their row ids", seconds=120)

        assert_agreement(world, flower, 1)


@pytest.mark.prove
@pytest.mark.timeout(600)
def test_flower_agrees_with_200_rows(world, tmp_path):
    """Each row's last task ended as the row did, in all workers, also when processes die."""
    with Typed(world, tmp_path, ports.reserve(1)[0], ("flower",)) as typed:
        flower = FlowerView(typed.flower, typed.user)
        until(lambda: told_of(flower, kept(world)), "Flower lists the steps with their row ids", seconds=120)
        for point in ("keep.after_download", "ingest.after_claim", "keep.before_commit"):
            world.arm(point)

        assert_agreement(world, flower, 25)

        assert not any(world.is_armed(point) for point in ("keep.after_download", "ingest.after_claim"))


def assert_agreement(world, flower, count):
    since, before = world.one("SELECT clock_timestamp() AS at")["at"], flower.count_events()["task-failed"]
    dead = "SELECT subject_id::text AS id FROM dead_letters WHERE created_at > %(since)s AND subject <> 'message'"

    cause_outcomes(world, count)

    letters = 4 * count + (count + 1) // 2
    until(lambda: len(world.rows(dead, since=since)) >= letters, "each cause has its dead letters")
    differences = {}

    def agrees():  # a notification that is sent after it said so has an event that Flower may not have yet
        differences.update(last=find_differences(world, flower, since))
        return not differences["last"]

    with contextlib.suppress(pytest.fail.Exception):
        until(agrees, "Flower agrees")
    assert differences["last"] == {}
    ids = {row["id"] for row in world.rows(dead, since=since)}
    assert len(ids) == letters
    assert {task["args"] for task in flower.list_tasks(state="FAILURE")} == ids
    assert flower.count_events()["task-failed"] - before == letters
    assert_readable(flower)
    shown = json.dumps(flower.list_tasks())
    hidden = {
        name: v for name, v in world.local.environment().items() if re.search("SECRET|TOKEN|PASSWORD", name) and v
    }
    assert len(hidden) > 3
    assert [name for name, value in hidden.items() if value in shown] == []


def assert_readable(flower):
    """A line for each task, without tracebacks, secrets or the queries of URLs; sweeps are not listed."""
    tasks = [task for task in flower.list_tasks() if task["state"] in ("SUCCESS", "RETRY", "FAILURE")]
    texts = [task["result"] or task["exception"] for task in tasks]
    assert {task["name"] for task in tasks} <= {*queues.TASK_BY_STEP.values()}
    assert [text for text in texts if len(text) > 400 or "\n" in text or "?" in text] == []
    assert any(re.fullmatch(r"keep output \d+ of job [0-9a-f-]{18}: kept png \d+ \w+ in \d+\.\d s", t) for t in texts)
    assert [task["traceback"] for task in tasks if task["traceback"]] == []


def kept(world):
    """Return the ids of two files that were kept."""
    asked = world.ask({"outputs": 2})
    world.await_end(asked)
    assert world.job(asked)["state"] == "succeeded"
    return {str(row["id"]) for row in world.outputs(asked)}


def told_of(flower, ids):
    """Return whether Flower saw some rows; it asks workers for events every five seconds, so early ones are unseen."""
    tasks = {row_id: task["name"] for row_id, task in flower.last_by_row().items() if row_id in ids}
    return tasks == dict.fromkeys(ids, "moorage.keep")


class Typed:
    """The three commands, as processes of their own."""

    def __init__(self, world, folder, port, commands=("flower", "worker", "beat")):
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
            for command in commands
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


def test_a_retry_and_a_dead_letter_publish_no_message(world):
    """Celery's own retry is a message with a delay, which this one must not be; an acknowledgement must not be lost."""

    def count():
        with world.broker() as client:
            taken = [json.loads(message)[2] for message in client.hvals("unacked")]
            return client.llen("keep") + taken.count("keep")

    def push(row_id):
        body = base64.b64encode(f'[["{row_id}"], {{}}, {{"callbacks": null}}]'.encode()).decode()
        world.push("keep", {"body": body}, lang="py", task="moorage.keep", id=str(uuid4()), argsrepr="", kwargsrepr="")

    with world.broker() as client:
        check_messages(world, count, push, lambda: client.delete("keep"))


def test_two_beats_tick_each_slot_once(world, tmp_path):
    """High availability of the clock is a second clock. Its log as JSON holds nothing else, no banner of Celery."""
    count = "SELECT count(*) AS n, max(slot) - min(slot) + 1 AS slots FROM ticks WHERE sweep = 'dispatch'"
    newest = "SELECT max(slot) AS slot FROM ticks WHERE sweep = 'dispatch'"
    command, env = [sys.executable, "-m", "worker", "beat"], {**world.local.environment(), "LOG_FORMAT": "json"}
    second = Process(command, env=env, cwd=ROOT, log_path=tmp_path / "beat2.log")
    second.start()
    try:
        until(lambda: "beat.ready" in second.read_log(), "the second beat has started")
        first = world.one(newest)["slot"]

        until(lambda: world.one(newest)["slot"] >= first + 3, "three more ticks")

        assert world.one(count)["n"] <= world.one(count)["slots"]
        assert second.is_running
        assert world.local.processes["beat1"].is_running
        assert "beat.ready" in [json.loads(line)["event"] for line in second.read_log().splitlines()]
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
