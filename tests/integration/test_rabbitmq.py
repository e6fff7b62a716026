"""The running system with RabbitMQ for its broker: the main path, what is dropped, and the broker's outages."""

import json
import os
import shutil
import signal
from collections import Counter

import amqp.exceptions
import pytest

from tests.acceptance.message_count import check_messages
from tests.acceptance.test_outages import MANY, finish, said_all
from tests.acceptance.world import SETTINGS, World, until
from tests.integration import rabbitmq_broker as rabbit
from tests.support import fork_server
from tests.support.rabbitmq import Rabbitmq
from tests.support.standin import Standin
from worker import inspect_cluster, queues
from worker.local_deployment import ROOT, LocalDeployment

pytestmark = rabbit.needs_rabbitmq

SCRIPTS = {
    "list": {"outputs": 3, "formats": ["png", "jpeg", "webp"]},
    "data": {"shape": "data", "outputs": 2, "formats": ["png", "jpeg"]},
    "early": {"duration_s": 0.0, "outputs": 2},
    "silent": {"webhook": "missing", "outputs": 2},
    "lost": {"outputs": 2, "faults": {"1": "404_always"}},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A RabbitMQ of these tests' own."""
    folder = tmp_path_factory.mktemp("rabbitmq")
    made = Rabbitmq(folder / "data", "secret-of-a-test", folder / "rabbitmq.log")
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory, stack, template_database, server):
    """Receiver, two workers, beat and a stand-in on this broker and a database of their own."""
    folder = tmp_path_factory.mktemp("moorage")
    (folder / "armed").mkdir()
    with Standin().start(folder / "standin") as standin:
        overrides = {
            **SETTINGS,
            "CELERY_BROKER_URL": server.url,
            "DATABASE_URL": stack.postgres.create_database("moorage_rabbitmq", template=template_database),
            "S3_PUBLIC_BUCKET": "rabbitmq-public",
            "S3_PRIVATE_BUCKET": "rabbitmq-private",
            "MOORAGE_EGRESS_ALLOW": standin.address,
        }
        with LocalDeployment(folder / "local", standin=standin, stack=stack, overrides=overrides) as local:
            world = World(local, standin, folder / "armed")
            until(lambda: exists(server, "keep"), "the workers declared their queues", seconds=60)
            yield world
            world.close()


def exists(server, name):
    try:
        return rabbit.depth(server.url, name) >= 0
    except amqp.exceptions.NotFound:
        return False


@pytest.fixture
def world(shared_world, server):
    """Give the running system, whole again after each test."""
    yield shared_world
    server.launch()
    server.await_ready()
    shared_world.mend()


def command(world, *argv):
    """Run a program with the system's own settings."""
    env = world.local.environment()
    return fork_server.run(["-m", *argv], env=env, cwd=ROOT)


def test_every_shape_is_kept_and_published(world):
    """The broker is chosen by its URL and by nothing else."""
    asked = [world.ask(script) for script in SCRIPTS.values()]

    finish(world, asked[:-1], world.pids())
    world.await_end(asked[-1])

    assert world.job(asked[-1])["state"] == "partial"
    world.check(asked[-1])


def test_the_queues_are_replicated_and_know_where_the_dead_go(world, server):
    """A queue declared otherwise would lose its messages with one node, and what is rejected with them."""
    (expected, *_) = queues.build_queues(server.url)

    with rabbit.connected(server.url) as connection:
        expected(connection.default_channel).queue_declare(passive=False)  # the same arguments: taken
        with pytest.raises(amqp.exceptions.PreconditionFailed, match="inequivalent arg"):
            connection.channel().queue_declare("keep", durable=True, auto_delete=False)

    assert rabbit.depth(server.url, "quick.dead") >= 0
    assert not exists(server, "celery_delayed_0")  # every delay is run_at in a row


def test_the_dead_have_a_queue_before_anything_can_die(world, server):
    """What RabbitMQ sends to a queue that does not exist is gone, and the first drain comes 30 s after the start."""
    with world.without("beat1"):
        with world.without("quick"), rabbit.connected(server.url) as connection:
            rabbit.purge(server.url)
            connection.default_channel.queue_delete("quick.dead")

        until(lambda: exists(server, "quick.dead"), "the worker declared it")


@pytest.mark.prove  # the same commands on Valkey: test_command_status.py
def test_status_and_ping_see_broker_and_workers(world):
    """What an operator looks at first must not depend on the kind of broker."""
    # Each asks for a few seconds alone, in which a busy computer may not answer.
    told = until(lambda: answered(world), "both workers in the status", seconds=120)
    until(lambda: pinged(world), "both workers' answers to a ping", seconds=120)

    assert set(told["queues"]) == set(inspect_cluster.ALL_QUEUES)


def answered(world):
    """Return the status when it knows of the broker and of both workers."""
    told = json.loads(command(world, "cli.main", "status", "--json").stdout)
    workers = {name.split("@")[0] for name in told["workers"] or ()}
    return told if told["broker"] == "ok" and workers == {"quick", "sweeps", "keep1"} else None


def pinged(world):
    done = command(world, "celery", "-A", "worker", "inspect", "ping", "--json", "--timeout", "5")
    return done.returncode == 0 and "quick@" in done.stdout and "keep1@" in done.stdout


@pytest.mark.parametrize(
    ("body", "headers", "reason"),
    [
        (b"[[], {}, {}]", {"lang": "py", "task": "moorage.renamed", "id": "1"}, "rejected"),
        (b'{"cut off', {"lang": "py", "task": "moorage.keep", "id": "2"}, "cannot be decoded"),
        (b'"no task at all"', {}, "rejected"),
        (b'{"task": "moorage.keep", "id": "3", "args": [], "kwargs": 7}', {}, "rejected"),
    ],
    ids=["unknown task", "undecodable", "no task", "invalid"],
)
def test_a_message_that_no_worker_can_take_becomes_a_dead_letter(world, server, body, headers, reason):
    """Celery drops it in silence; here a person sees it."""
    before = world.pids()

    rabbit.push(server.url, "quick", body, **headers)

    sql = """SELECT * FROM dead_letters WHERE subject = 'message' AND facts ->> 'body' = %(body)s"""
    (letter,) = until(lambda: world.rows(sql, body=body.decode()), "a dead letter")
    assert (letter["category"], letter["facts"]["queue"]) == ("VALIDATION_FAILED", "quick.dead")
    assert reason in letter["reason"]
    assert world.pids() == before


def test_a_wake_whose_consumers_die_is_woken_again(world, server):
    """The delivery limit ends the circle of a message that kills; the row behind it is live and must not wait."""
    with world.without("keep1"):
        asked = world.ask({"outputs": 1})
        until(lambda: rabbit.depth(server.url, "keep"), "a wake")
        seen: Counter[str] = Counter()

        until(lambda: seen.update(rabbit.die_holding(server.url, "keep")) or drained(world), "the drain woke it")

    assert max(seen.values()) == queues.DELIVERY_LIMIT + 1
    finish(world, [asked], world.pids())


def drained(world):
    return world.rows("SELECT 1 FROM ticks WHERE sweep = 'drain' AND (result ->> 'woken')::int > 0")


def test_a_retry_and_a_dead_letter_publish_no_message(world, server):
    """As on Redis; an unacknowledged message would be back in the queue when the workers have stopped."""
    check_messages(
        world,
        lambda: rabbit.depth(server.url, "keep"),
        lambda row_id: rabbit.push_task(server.url, "keep", "moorage.keep", row_id),
        lambda: rabbit.purge(server.url),
    )


def test_ticks_that_expire_unheard_leave_nothing(world, server):
    """RabbitMQ puts expired messages into the dead-letter queue: thousands, while no worker runs. The drain goes on."""
    with world.without("sweeps"):
        until(lambda: rabbit.depth(server.url, "sweeps.dead") > 0, "expired ticks")

    until(lambda: rabbit.depth(server.url, "sweeps.dead") == 0, "the drain emptied the queue")
    assert world.rows("SELECT 1 FROM dead_letters WHERE facts ->> 'task' = %(task)s", task=queues.SWEEP_TASK) == []


def test_an_emptied_broker_loses_nothing(world, server):
    """Nothing exists only in the broker."""
    before = world.pids()
    asked = [world.ask(MANY) for _ in range(4)]
    world.await_leased(asked[0])

    rabbit.purge(server.url)

    finish(world, asked, before)


@pytest.mark.parametrize("data", [pytest.param("kept", marks=pytest.mark.prove), "lost"])
def test_a_broker_that_is_killed_delays_only(world, server, data):
    """Webhooks are recorded without it; when it is back, empty or not, dispatch sends what is due."""
    before = world.pids()
    asked = [world.ask(MANY) for _ in range(3)]
    world.await_leased(asked[0])

    server.kill()
    asked += [world.ask({"outputs": 2}) for _ in range(2)]
    until(lambda: all(said_all(world, one) for one in asked), "every webhook was answered 2xx")
    if data == "lost":
        shutil.rmtree(server.folder / "mnesia")
    server.start()

    finish(world, asked, before)


@pytest.mark.prove  # a killed one, above
def test_a_broker_that_stalls_delays_only(world, server):
    """A broker out of memory or disk confirms nothing: whoever publishes must not wait for it for ever."""
    before = world.pids()
    asked = [world.ask(MANY) for _ in range(2)]
    world.await_leased(asked[0])

    os.kill(server.pid, signal.SIGSTOP)
    try:
        asked += [world.ask({"outputs": 2}) for _ in range(2)]
        until(lambda: all(said_all(world, one) for one in asked), "every webhook was answered 2xx")
    finally:
        os.kill(server.pid, signal.SIGCONT)

    finish(world, asked, before)


@pytest.mark.prove  # a full Valkey: test_broker_refusals.py
def test_a_broker_out_of_memory_holds_up_nobody_who_publishes(world, server):
    """It keeps the connection, confirms nothing and answers no goodbye: a step would hang until its time limit."""
    before = world.pids()
    line = "from worker import publish; from moorage.model import Wake; import uuid;"
    line += "print([publish.publish_wakes([Wake('keep', uuid.uuid4())]) for _ in range(2)])"

    server.control("set_vm_memory_high_watermark", "0")
    try:
        done = command(world, "timeit", "-n", "1", "-r", "1", line)
        asked = world.ask({"outputs": 2})
        until(lambda: said_all(world, asked), "every webhook was answered 2xx")
    finally:
        server.control("set_vm_memory_high_watermark", "0.4")

    assert "[0, 0]" in done.stdout, done.stderr
    finish(world, [asked], before)
