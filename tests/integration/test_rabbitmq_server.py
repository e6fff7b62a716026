"""RabbitMQ as a test server: found or not, run in its own folder, gone when it is stopped."""

import socket
import stat

import pytest

from moorage.errors import ConfigError
from tests.acceptance.world import until
from tests.integration import rabbitmq_broker as rabbit
from tests.support import rabbitmq
from tests.support.rabbitmq import Rabbitmq
from worker import queues


@pytest.fixture
def server(tmp_path):
    made = Rabbitmq(tmp_path / "data", "secret-of-a-test", tmp_path / "rabbitmq.log")
    yield made
    made.stop()


def test_its_absence_is_told_in_one_line(server, monkeypatch):
    """Whoever asks for it must hear what to install, not see a traceback of a missing file."""
    monkeypatch.setattr(rabbitmq, "_SCRIPTS", ())
    monkeypatch.setenv("PATH", "")

    with pytest.raises(ConfigError, match="no RabbitMQ is installed: apt-get install rabbitmq-server"):
        server.start()


@rabbit.needs_rabbitmq
@pytest.mark.prove  # a broker that is killed: test_rabbitmq.py
def test_a_killed_server_has_what_it_confirmed_and_a_stopped_one_leaves_nothing(server):
    """A crash that loses confirmed messages, or a process that stays, would spoil every test after it."""
    server.start()
    ports = list(server.ports)
    with rabbit.connected(server.url) as connection:
        for queue in queues.build_queues(server.url):
            queue(connection.default_channel).declare()
    server.restart()  # a queue declared in the last moment before a crash may be recovered empty
    rabbit.push_task(server.url, "keep", "moorage.keep", "1")

    server.kill()
    server.start()

    until(lambda: rabbit.depth(server.url, "keep") == 1, "the queue has its leader and the message again")
    assert stat.S_IMODE((server.folder / "rabbitmq.conf").stat().st_mode) == 0o600
    server.stop()
    assert server.ports == ports
    assert [port for port in ports if listens(port)] == []


def listens(port):
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0
