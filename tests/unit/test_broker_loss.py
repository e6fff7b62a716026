"""A worker outlives the loss of its broker also where kombu stumbles over the broken connection."""

import time
import types

import pytest

from worker import bootsteps
from worker import consumer as drop


class Broken:
    """A connection of kombu 5.7 whose server was killed while messages were unacknowledged."""

    connection_errors = (ConnectionError,)
    channel_errors = ()

    def collect(self, **_):
        raise ConnectionError("refused")

    def close(self):
        # kombu.transport.redis: it hands unacknowledged messages back through a client that collect() took away.
        raise AttributeError("'NoneType' object has no attribute 'hostname'")


@pytest.fixture
def consumer():
    made = drop.Consumer.__new__(drop.Consumer)
    made.connection = Broken()
    conf = types.SimpleNamespace(worker_cancel_long_running_tasks_on_connection_loss=False)
    made.app = types.SimpleNamespace(conf=conf)
    made.first_connection_attempt = False
    return made


def test_a_connection_that_cannot_be_closed_does_not_end_the_worker(consumer, monkeypatch):
    """Seen with Valkey killed in mid-run: "Unrecoverable error", and both keep workers were gone."""
    monkeypatch.setattr("celery.worker.consumer.consumer.bound_open_broker_sockets", lambda *_: None)

    consumer.on_connection_error_after_connected(ConnectionError("lost"))

    assert consumer.connection is None


class Refusing:
    """A connection that is refused once."""

    def ensure_connection(self, log_error, **_):
        log_error(ConnectionError("refused"), 0.0)
        return self


def test_a_worker_that_waits_for_its_broker_is_alive(consumer, monkeypatch):
    """Kubernetes killed every worker after a minute without the broker."""
    touched = []
    monkeypatch.setattr(bootsteps, "touch_liveness_file", lambda: touched.append("touched"))

    consumer.ensure_connected(Refusing())
    assert touched == ["touched"]
    consumer._connecting_at, consumer._wait_seconds = time.monotonic(), 0
    consumer._await_turn()

    assert len(touched) > 1


def test_a_liveness_file_that_cannot_be_written_ends_no_worker(monkeypatch, tmp_path, caplog):
    """Its folder is missing, or the disk is full: the probe fails, not the work."""
    monkeypatch.setattr(bootsteps, "liveness_file", str(tmp_path / "missing/alive"))

    assert bootsteps.touch_liveness_file()

    assert [record.getMessage() for record in caplog.records] == ["liveness_file.not_touched"]
