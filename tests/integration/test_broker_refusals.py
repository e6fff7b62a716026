"""One worker and one beat meet every refusal of a real Valkey, and messages that are none: they stay and go on."""

import contextlib
import itertools
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import kombu
import pytest
import redis

from cli.commands.doctor.checks import check_broker
from embedded.stack import Stack
from moorage.settings import load_settings
from tests.integration import command_line as cli
from tests.integration.broker_worker import Worker, running
from tests.integration.core import wait_until
from tests.support import fork_server
from tests.support.valkey import REFUSALS, RefusingValkey, envelope, wake
from worker import broker_transports, inspect_cluster, queues

RUBBISH = {
    "null": b"null",
    "a list": b"[]",
    "a number": b"1",
    "a text": b'"x"',
    "an empty object": b"{}",
    "no JSON": b"\xff{",
    "too deep": b"[" * 100_000,
    "a long number": b"1" * 5_000,
    "a type of kombu's": b'{"__type__": "decimal", "__value__": "x"}',
    "properties of another type": b'{"properties": [], "headers": {}, "body": ""}',
    "a tag of another type": b'{"properties": {"delivery_tag": [], "delivery_info": {}}, "headers": {}, "body": ""}',
    "headers of another type": b'{"properties": {"delivery_tag": "t", "delivery_info": {}}, "headers": 5, "body": ""}',
    "a body of another type": b'{"properties": {"delivery_tag": "t", "delivery_info": {}}, "headers": {}, "body": 5}',
    "an unknown encoding": b'{"properties": {"delivery_tag": "t", "delivery_info": {}, "body_encoding": "rot13"},'
    b' "headers": {}, "body": "x"}',
    "base64 that is none": b'{"properties": {"delivery_tag": "t", "delivery_info": {}, "body_encoding": "base64"},'
    b' "headers": {}, "body": "x"}',
    "a routing key of another type": b'{"properties": {"delivery_tag": "t", "delivery_info": {"routing_key": [],'
    b' "exchange": {}}}, "headers": {}, "body": "e30="}',
    "a task of another type": envelope("[[], {}, {}]", task=[]),
    "an id of another type": envelope('[["id"], {}, {}]', task="moorage.keep", id={}),
    "no id": envelope('[["id"], {}, {}]', task="moorage.keep", id=None),
    "times of another type": envelope('[["id"], {}, {}]', task="moorage.keep", eta=5, expires=[], timelimit="soon"),
    "a body that is no call": envelope("1", task="moorage.keep"),
    "a body with too few parts": envelope("[[]]", task="moorage.keep"),
    "a call with arguments of other types": envelope("[1, 2, 3]", task="moorage.keep"),
    "a body that is not JSON": envelope("{", task="moorage.keep"),
    "pickle": envelope("gASV", task="moorage.keep").replace(b"application/json", b"application/x-python-serialize"),
    "compression that is none": envelope('[["id"], {}, {}]', task="moorage.keep", compression="gzip"),
}
NO_SWEEPS = [("none",), (), ("drain", 1), ({},), (None,), (5,)]
LONG = ("LOADING", "MASTERDOWN")  # they take ten seconds
PUBLISH = """
import uuid
from moorage import logs
from moorage.model import Wake
from worker import publish
logs.configure_logging()
print(publish.publish_wakes([Wake("keep", uuid.uuid4()), Wake("ingest", uuid.uuid4())]))
"""
BROADCASTS = ("/0.celery.pidbox", "/0.celeryev/worker.heartbeat", "/0.reply.celery.pidbox")


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RefusingValkey]:
    folder = tmp_path_factory.mktemp("refusing")
    made = RefusingValkey(folder / "valkey", "secret-of-a-test", folder / "valkey.log")
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def environment(stack: Stack, template_database: str, valkey: RefusingValkey) -> dict[str, str]:
    url = stack.postgres.create_database("moorage_refusals", template=template_database)
    return cli.environment(stack, url, CELERY_BROKER_URL=valkey.url(), MOORAGE_DEV_DRAIN_SECONDS="1")


@pytest.fixture(scope="module")
def worker(
    environment: dict[str, str], valkey: RefusingValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Worker]:
    """Start the worker on a broker that refuses already: a start meets what a reconnection meets."""
    valkey.refuse(REFUSALS[0])
    log = tmp_path_factory.mktemp("worker") / "worker.log"
    with running(["worker", "-c", "1", "-n", "refused@%h"], environment, log) as (process, _):
        made = Worker(process, log, environment["DATABASE_URL"], valkey)
        made.await_line(REFUSALS[0], 0)
        valkey.accept(REFUSALS[0])
        yield made
        made.conn.close()


@pytest.mark.parametrize("end", ["ack", "reject", "requeue"])
def test_a_message_whose_end_was_refused_does_not_stop_its_consumer(
    valkey: RefusingValkey, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    It stayed counted as being processed, as many as may be at once: the worker was connected and took no more.

    A drill with a broker that became a replica while the worker was not waiting for messages found it.
    """
    monkeypatch.setattr("kombu.transport._transport_cache", {})  # acceptance tests connected with kombu's own
    broker_transports.register_transports()
    bodies: list[str] = []
    with kombu.Connection(valkey.url()) as connection, connection.SimpleQueue(f"limited_{end}") as queue:
        queue.consumer.qos(prefetch_count=1)
        queue.put("first")
        queue.put("second")
        message = queue.get(timeout=60)
        valkey.refuse("READONLY")
        with pytest.raises(redis.ReadOnlyError):
            {"ack": message.ack, "reject": message.reject, "requeue": message.requeue}[end]()
        valkey.accept("READONLY")

        bodies.append(queue.get(timeout=60).payload)

        queue.clear()
    assert bodies == ["second"]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "prefix", [pytest.param(name, marks=[pytest.mark.prove] * (name in LONG)) for name in REFUSALS]
)
def test_a_worker_outlives(worker: Worker, valkey: RefusingValkey, prefix: str) -> None:
    """Each of these ended a worker with status 1: "Unrecoverable error"."""
    settings = load_settings(_env_file=None, database_url="postgresql://", broker_url=valkey.url())
    start = worker.position
    valkey.refuse(prefix)

    worker.await_line(prefix, start)
    found = [check for check in check_broker(settings) if check.level == "fail"]
    valkey.accept(prefix)

    worker.check_consumes()
    if prefix != "WRONGTYPE":  # concerns one key, not the server
        assert [check.what.partition(":")[0] for check in found] == [f"the broker refuses ({prefix})"]
    assert {check.level for check in check_broker(settings)} == {"ok"}


@pytest.mark.timeout(400)
def test_a_refused_acknowledgement_does_not_stop_a_worker(worker: Worker, valkey: RefusingValkey) -> None:
    """Its message counted as unacknowledged for ever; with as many of them as children nothing was consumed again."""
    start = worker.position
    settings = load_settings(_env_file=None, database_url="postgresql://", broker_url=valkey.url())
    with valkey.client() as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-zrem", "-hdel")
        assert [*check_broker(settings)][-1].what.startswith("the broker refuses (NOPERM)")
        valkey.push("quick", wake("moorage.ingest", str(uuid.uuid4())))
        worker.await_line("Couldn't ack", start)
        admin.execute_command("ACL", "SETUSER", "default", "+@all")

        worker.check_consumes()
        admin.delete("unacked", "unacked_index")  # or it returns to its queue after half an hour


@pytest.mark.timeout(400)
def test_what_is_no_message_becomes_a_dead_letter(worker: Worker, valkey: RefusingValkey) -> None:
    """`LPUSH keep null` ended every worker of the queue; each of these is seen by an operator, and work goes on."""
    for queue, entry in itertools.product(queues.QUEUES, RUBBISH.values()):
        valkey.push(queue, entry)
    with valkey.client() as broker:
        broker.hset("unacked", "tag", "null")
        broker.zadd("unacked_index", {"tag": 0})  # to be returned to its queue, within ten seconds
        for args in NO_SWEEPS:
            valkey.push("quick", wake("moorage.sweep", *args))
        for channel, entry in itertools.product(BROADCASTS, RUBBISH.values()):
            broker.publish(channel, entry)

        worker.check_consumes()
        dead = [queues.dead_letter_queue_name(queue) for queue in queues.QUEUES]
        count, wanted = (lambda: sum(broker.llen(name) for name in dead)), len(queues.QUEUES) * len(RUBBISH)
        with contextlib.suppress(AssertionError):  # one whose acknowledgement was lost comes again: at least once each
            wait_until(lambda: count() >= wanted, 180)
        assert count() >= wanted, worker.read()[-3000:]
        wait_until(lambda: not broker.exists("unacked", "unacked_index"))
    sweeps = "SELECT FROM dead_letters WHERE facts ->> 'task' = 'moorage.sweep' AND reason LIKE '%name a sweep'"
    wait_until(lambda: len(worker.conn.execute(sweeps).fetchall()) >= len(NO_SWEEPS))


def test_publishers_and_commands_name_the_refusal(environment: dict[str, str], valkey: RefusingValkey) -> None:
    """The receiver goes on without its wakes, and a command ends with one line instead of a traceback."""
    valkey.refuse("READONLY")

    sent = fork_server.run(["-c", PUBLISH], cwd=cli.ROOT, env=environment)
    keep = cli.run(environment, "keep", str(cli.ROOT / "docs/page/dark.png"))
    screen = cli.run(environment, "status")
    status = json.loads(cli.run(environment, "status", "--json").stdout)
    valkey.accept("READONLY")

    assert "broker  unavailable: the broker refuses (READONLY): it is a replica" in screen.stdout, screen.stderr
    assert (screen.returncode, set(status["queues"])) == (0, set(inspect_cluster.ALL_QUEUES))
    assert status["broker"].startswith("unavailable: the broker refuses (READONLY)")
    assert (sent.stdout, sent.stderr.count("\n")) == ("0\n", 1)
    assert "wake.dropped" in sent.stderr
    assert "READONLY" in sent.stderr
    assert keep.stderr.startswith("moorage: the broker refuses (READONLY): it is a replica: promote it")
    assert keep.stderr.count("\n") == 1


@pytest.mark.timeout(400)
def test_beat_logs_one_line_for_a_tick_that_is_refused(
    environment: dict[str, str], valkey: RefusingValkey, tmp_path: Path
) -> None:
    """13,083 lines were counted in one minute."""
    with running(["beat"], environment, tmp_path / "beat.log") as (process, log):
        with valkey.client() as broker:
            broker.delete("sweeps")
            wait_until(lambda: broker.llen("sweeps"), seconds=120)  # it ticks
        start = log.stat().st_size
        valkey.refuse("READONLY")

        wait_until(lambda: len(refused_ticks(log, start)) >= 6 or process.poll() is not None, seconds=120)
        lines = log.read_text()[start:].splitlines()
        valkey.accept("READONLY")
        with valkey.client() as broker:
            broker.delete("sweeps")
            wait_until(lambda: broker.llen("sweeps"), seconds=120)

    assert len(lines) <= len(refused_ticks(log, start)) + 3  # what is said of the lost connection
    assert "READONLY" in "".join(lines)


def refused_ticks(log: Path, start: int) -> list[str]:
    return [line for line in log.read_text()[start:].splitlines() if "beat.tick_not_sent" in line]
