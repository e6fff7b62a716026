"""Responses of the receiver while PostgreSQL or the broker is unavailable, slow or restarting, and on shutdown."""

import concurrent.futures
import contextlib
import json
import time
from collections.abc import Iterator

import psycopg
import pytest
import redis

from embedded.postgres import Postgres
from embedded.stack import Stack
from tests.integration import receiver_process as rp

BODY = b'{"id": "ufawqhfynnddngldkgtslldrkq", "status": "processing"}'
WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%deliveries%'"
ANSWER_SECONDS = 5  # not the three of the default: on a busy computer the good answers must come within them, too
BUSY_SECONDS = 25  # what a busy computer may add


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with rp.server(tmp_path_factory.mktemp("outage")) as server:
        yield server


@pytest.fixture(scope="module")
def receiver(postgres: Postgres) -> Iterator[rp.Receiver]:
    with rp.running(postgres.url(), MOORAGE_DEV_ANSWER_SECONDS=str(ANSWER_SECONDS)) as process:
        yield process


def test_without_postgres_the_response_is_503_in_time_and_recovers(receiver: rp.Receiver, postgres: Postgres) -> None:
    """Replicate retries for about a minute: every second until the receiver reconnects counts."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:  # fill the idle connections that will be dead
        warm = list(pool.map(lambda n: receiver.post(BODY, webhook_id=f"msg_warm_{n}")[0], range(32)))
    postgres.stop()

    started = time.monotonic()
    status, headers, body = receiver.post(BODY, webhook_id="msg_away")
    took = time.monotonic() - started
    ready_while_away = receiver.call("GET", "/readyz")[0]
    up_while_away = receiver.metric("moorage_database_up")
    postgres.start()
    again = receiver.post(BODY, webhook_id="msg_away")

    assert set(warm) == {202}
    assert (status, headers["retry-after"]) == (503, "1")
    assert "did not commit" in json.loads(body)["detail"]
    assert took < ANSWER_SECONDS + BUSY_SECONDS
    assert ready_while_away == 503
    assert up_while_away == 0
    assert again[0] == 202
    rp.until(lambda: receiver.call("GET", "/readyz")[0] == 200)


def test_a_restart_of_postgres_causes_no_error(receiver: rp.Receiver, postgres: Postgres) -> None:
    """Every pooled connection is dead then: each must be detected before a request fails."""
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: receiver.post(BODY, webhook_id=f"msg_idle_{n}"), range(32)))
    postgres.restart()

    statuses = [receiver.post(BODY, webhook_id=f"msg_restart_{n}")[0] for n in range(10)]

    assert statuses == [202] * 10


def test_a_commit_that_hangs_is_503_and_the_receiver_recovers(receiver: rp.Receiver, postgres: Postgres) -> None:
    """A lock or a slow disk: the sender must get the 503 before its own timeout, and never a false 2xx."""
    with psycopg.connect(postgres.url()) as conn:
        conn.execute("LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE")
        started = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(12) as pool:  # more than there are connections
            replies = list(pool.map(lambda n: receiver.post(BODY, webhook_id=f"msg_lock_{n}"), range(12)))
        took = time.monotonic() - started
        rp.until(lambda: conn.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchone() is None)  # all cancelled
    after = receiver.post(BODY, webhook_id="msg_lock_0")

    assert {status for status, _, _ in replies} == {503}
    assert took < ANSWER_SECONDS + BUSY_SECONDS  # 12 one after the other would take a minute
    assert after[0] == 202, "the cancelled insert was rolled back"


def test_a_request_in_flight_completes_on_shutdown(postgres: Postgres) -> None:
    """A rolling update must not lose webhooks."""
    with (
        rp.running(postgres.url()) as receiver,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
        psycopg.connect(postgres.url()) as conn,
    ):
        conn.execute("LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE")
        reply = pool.submit(receiver.post, BODY, webhook_id="msg_stop")
        rp.until(lambda: bool(rp.rows(postgres.url(), WAITING)))
        receiver.process.terminate()
        rp.until(lambda: "Shutting down" in receiver.log())
        conn.rollback()

        assert reply.result()[0] == 202
        assert receiver.process.wait(timeout=60) == 0


@pytest.mark.parametrize("app", ["receiver.app:app", "web.asgi:app"])
def test_the_child_of_a_killed_main_process_leaves_the_port(
    postgres: Postgres, app: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would serve the old version beside the new one, with nobody who stops it."""
    monkeypatch.setattr(rp.Receiver, "app", app)
    with rp.running(postgres.url()) as receiver:
        receiver.process.kill()
        receiver.process.wait(timeout=60)

        rp.until(lambda: not is_listening(receiver))
        assert "receiver.parent_died" in receiver.log()


def is_listening(receiver: rp.Receiver) -> bool:
    with contextlib.suppress(OSError):
        receiver.connect().close()
        return True
    return False


def test_killed_after_the_commit_the_repeated_webhook_is_known(postgres: Postgres) -> None:
    """The sender got no response and retries: one row, and a correct status."""
    with (
        rp.running(postgres.url(), MOORAGE_FAILPOINT="receive.after_commit") as receiver,
        pytest.raises(OSError, match=r"."),
    ):
        receiver.post(BODY, webhook_id="msg_killed")

    with rp.running(postgres.url()) as another:
        status, _, _ = another.post(BODY, webhook_id="msg_killed")

    assert status == 200
    assert len(rp.rows(postgres.url(), "SELECT id FROM deliveries WHERE webhook_id = 'msg_killed'")) == 1


def test_an_unavailable_broker_does_not_change_the_response_and_is_counted(receiver: rp.Receiver) -> None:
    """Wakes are an optimisation; dispatch finds the row a second later."""
    started = time.monotonic()
    statuses = [receiver.post(BODY, webhook_id=f"msg_nobroker_{n}")[0] for n in range(60)]
    took = time.monotonic() - started

    assert statuses == [202] * 60
    assert took < BUSY_SECONDS  # half a second each would be waiting for it
    rp.until(lambda: receiver.metric('moorage_wakes_dropped_total{reason="failed"}') > 0)


def test_a_recorded_webhook_publishes_a_wake_and_a_repeated_one_too(stack: Stack, database_url: str) -> None:
    """The wake saves the wait for the next dispatch; a repeated webhook wakes a row that is still pending."""
    broker = stack.valkey.url(6)  # a database that no other test leaves messages in
    with rp.running(database_url, CELERY_BROKER_URL=broker) as receiver:
        first = receiver.post(BODY, webhook_id="msg_wake")
        receiver.post(BODY, webhook_id="msg_wake")
        rp.until(lambda: receiver.metric("moorage_wakes_sent_total") == 2)
        with psycopg.connect(database_url) as conn:
            conn.execute("UPDATE deliveries SET state = 'ignored', run_at = NULL, ended_at = moment()")
        finished = receiver.post(BODY, webhook_id="msg_wake")
        receiver.stop()
        sent = messages(broker)

    row_id = json.loads(first[2])["id"]
    assert finished[0] == 200
    assert [message.count(row_id) > 0 for message in sent] == [True, True]


def messages(broker: str) -> list[str]:
    """Remove all messages from the queue `quick` and return their headers, which contain the arguments."""
    with redis.Redis.from_url(broker) as client:
        raw = client.lrange("quick", 0, -1)
        client.delete("quick")
    return [json.dumps(json.loads(message)["headers"]) for message in raw]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"DATABASE_URL": "mysql://x"}, "DATABASE_URL: write postgresql://"),
        ({"MOORAGE_WEBHOOK_MAX_BYTE": "1"}, "MOORAGE_WEBHOOK_MAX_BYTE is not a setting: did you mean"),
    ],
    ids=["wrong-value", "misspelt-name"],
)
def test_an_invalid_setting_fails_the_start_and_is_named(settings: dict[str, str], said: str) -> None:
    """An orchestrator must see the failure, an operator the reason."""
    with rp.starting("postgresql://nobody@127.0.0.1:9/x", **settings) as receiver:
        rp.until(lambda: receiver.process.poll() is not None)

        assert receiver.process.returncode != 0
        assert said in receiver.log()
