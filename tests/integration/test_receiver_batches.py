"""Group commit: which rows share a statement, and what each request is answered when the statement fails."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from db.connection import Connection, connect
from embedded.proxy import Proxy
from moorage import ids
from moorage.errors import DatabaseUnavailable
from receiver import deliveries, recorder
from receiver.connection_pool import ConnectionPool
from receiver.deliveries import NewDelivery, RecordedDelivery
from receiver.recorder import MAX_ROWS, DeliveryRecorder

PATIENT = 60.0  # seconds: a busy computer must not change an answer
Work = Callable[[DeliveryRecorder], Awaitable[Any]]
# Rows that PostgreSQL refuses: in text, in the type of a column, and by an error that others have as an outage.
BAD_ID, BAD_HEADER, BAD_DISK = "msg\0", {"x": "\0"}, "msg_full"
REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.webhook_id = 'msg_full' THEN RAISE EXCEPTION 'no space' USING ERRCODE = '53100'; END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON deliveries FOR EACH ROW EXECUTE FUNCTION refuse();
"""
REPEAL = "DROP TRIGGER refuse ON deliveries; DROP FUNCTION refuse()"
COUNTS = """
SELECT (SELECT count(*) FROM deliveries) AS rows, (SELECT count(DISTINCT xmin::text) FROM deliveries) AS commits,
       (SELECT count(*) FROM events WHERE subject = 'delivery' AND actor = 'receiver') AS events
"""
WAITING = "SELECT count(*) AS n FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%INSERT INTO del%'"


def new(webhook_id: str, headers: dict[str, str] | None = None, body: bytes = b"{}") -> NewDelivery:
    digest = hashlib.sha256(body).hexdigest()
    return NewDelivery(ids.uuid7(), "replicate", webhook_id, headers or {}, body, digest)


def run(url: str, work: Work, *, answer_seconds: float = PATIENT) -> Any:
    """Run work with a recorder of its own; return its result."""

    async def main() -> Any:
        pool = ConnectionPool(url)
        try:
            return await work(DeliveryRecorder(pool, answer_seconds=answer_seconds))
        finally:
            await pool.close()

    return asyncio.run(main())


async def record_all(to: DeliveryRecorder, batch: Sequence[NewDelivery]) -> list[RecordedDelivery | BaseException]:
    return await asyncio.gather(*map(to.record, batch), return_exceptions=True)


async def until(state: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENT):
        while not state():
            await asyncio.sleep(0.02)


def counts(conn: Connection) -> dict[str, int]:
    return conn.execute(COUNTS).fetchone() or {}


@pytest.mark.parametrize(
    ("bad", "seconds"),
    [(new(BAD_ID), PATIENT), (new("msg_header", BAD_HEADER), PATIENT), (new(BAD_DISK), 10.0)],
    ids=["refused-as-text", "refused-by-a-type", "refused-as-an-outage"],
)
def test_one_refused_row_among_127_good_ones_fails_alone(
    database_url: str, conn: Connection, bad: NewDelivery, seconds: float
) -> None:
    """The others are webhooks of other jobs: none of them may be answered 503 for it."""
    conn.execute(REFUSE)
    batch = [new(f"msg_{n}") for n in range(MAX_ROWS)]
    batch[60] = bad

    answers = run(database_url, lambda to: record_all(to, batch), answer_seconds=seconds)

    conn.execute(REPEAL)
    refused = answers.pop(60)
    assert isinstance(refused, DatabaseUnavailable)
    assert [(row.id, row.is_new) for row in answers] == [(row.id, True) for row in batch if row is not bad]
    assert counts(conn) == {"rows": 127, "commits": 127, "events": 127}


def test_requests_that_wait_share_a_statement_of_at_most_128_rows(database_url: str, conn: Connection) -> None:
    """One commit each is what limits a receiver."""

    async def work(to: DeliveryRecorder) -> None:
        with psycopg.connect(database_url) as other:
            other.execute("LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE")
            answers = asyncio.gather(*(to.record(new(f"msg_{n}")) for n in range(4 * MAX_ROWS)))
            await until(lambda: (conn.execute(WAITING).fetchone() or {})["n"] >= recorder.MAX_BATCHES)
            waiting.append((conn.execute(WAITING).fetchone() or {})["n"])
            other.rollback()
        assert all(row.is_new and row.is_pending for row in await answers)

    waiting: list[int] = []
    run(database_url, work)

    assert waiting == [2]
    assert counts(conn) == {"rows": 4 * MAX_ROWS, "commits": 4, "events": 4 * MAX_ROWS}


def test_large_bodies_do_not_share_a_statement(database_url: str, conn: Connection) -> None:
    """A small webhook would wait for all of them."""
    batch = [new(f"msg_{n}", body=b"x" * (recorder.MAX_BYTES // 2 + 1)) for n in range(3)]

    answers = run(database_url, lambda to: record_all(to, batch))

    assert all(isinstance(row, RecordedDelivery) and row.is_new for row in answers)
    assert counts(conn) == {"rows": 3, "commits": 3, "events": 3}


def test_equal_webhooks_in_one_statement_create_one_row(database_url: str, conn: Connection) -> None:
    """A sender that repeats at once must not have its first request refused for it."""
    batch = [new(f"msg_{n % 2}") for n in range(50)]

    answers = run(database_url, lambda to: record_all(to, batch))

    assert sum(row.is_new for row in answers) == 2
    assert len({row.id for row in answers}) == 2
    assert counts(conn) == {"rows": 2, "commits": 1, "events": 2}


def test_a_batch_that_hangs_holds_up_no_other(database_url: str, conn: Connection) -> None:
    """It waits for the row of another transaction; webhooks that arrive meanwhile are committed beside it."""

    async def work(to: DeliveryRecorder) -> None:
        with psycopg.connect(database_url) as other:
            other.execute(deliveries.INSERT, deliveries.build_arguments([new("msg_1")]))
            hanging = asyncio.create_task(to.record(new("msg_1")))
            await until(lambda: (conn.execute(WAITING).fetchone() or {})["n"] == 1)
            assert all([(await to.record(new(f"msg_{n}"))).is_new for n in (2, 3)])
            assert not hanging.done()
            other.rollback()
        assert (await hanging).is_new

    run(database_url, work)


def test_each_request_keeps_its_own_deadline(database_url: str) -> None:
    """A request that came later waits longer, though both wait for the same place."""

    async def work(to: DeliveryRecorder) -> None:
        with psycopg.connect(database_url) as other:
            other.execute("LOCK TABLE deliveries IN ACCESS EXCLUSIVE MODE")
            early = asyncio.gather(*(to.record(new(f"msg_{n}")) for n in range(3 * MAX_ROWS)), return_exceptions=True)
            await asyncio.sleep(5)  # the difference of the deadlines
            late = asyncio.create_task(to.record(new("msg_late")))
            answers = await early
            assert not late.done()
            other.rollback()
        assert {type(answer) for answer in answers} == {DatabaseUnavailable}
        assert (await late).is_new

    run(database_url, work, answer_seconds=8)


class _LostReply:
    """Loses the connection after the commit, once or at every attempt."""

    def __init__(self, proxy: Proxy, *, times: int) -> None:
        self._proxy, self._times = proxy, times

    def __call__(self, name: str) -> None:
        if name == "receive.after_commit" and self._times:
            self._times -= 1
            self._proxy.reset_connections()
            raise psycopg.OperationalError("the connection is lost")


@pytest.mark.parametrize("times", [1, 10_000])
def test_an_uncertain_commit_is_503_for_all_unless_a_repetition_makes_it_certain(
    database_url: str, conn: Connection, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """The rows are there, the reply is lost: nobody may be told 2xx by guess, and a repetition doubles nothing."""
    parts = urlsplit(database_url)
    proxy = Proxy(parts.port or 5432).start()
    url = parts._replace(netloc=parts.netloc.replace(f":{parts.port}", f":{proxy.port}")).geturl()
    batch = [new(f"msg_{n}") for n in range(20)]
    monkeypatch.setattr(deliveries, "failpoint", _LostReply(proxy, times=times))

    answers = run(url, lambda to: record_all(to, batch), answer_seconds=PATIENT if times == 1 else 3)

    monkeypatch.undo()
    proxy.stop()
    again = run(database_url, lambda to: record_all(to, [new(item.webhook_id) for item in batch]))
    if times == 1:
        assert [(row.id, row.is_new) for row in answers] == [(row.id, True) for row in batch]
    else:
        assert {type(answer) for answer in answers} == {DatabaseUnavailable}
    assert [(row.id, row.is_new) for row in again] == [(row.id, False) for row in batch]
    assert counts(conn) == {"rows": 20, "commits": 1, "events": 20}


def test_two_receivers_with_equal_webhooks_in_opposite_order_do_not_deadlock(
    database_url: str, conn: Connection
) -> None:
    """A deadlock costs a second and a statement; providers send to all receivers at once."""

    async def work(to: DeliveryRecorder) -> None:
        pool = ConnectionPool(database_url)
        beside = DeliveryRecorder(pool, answer_seconds=PATIENT)
        for number in range(10):
            batch = [f"msg_{number}_{n}" for n in range(MAX_ROWS)]
            orders = batch, batch[::-1]
            pairs = zip((to, beside), orders, strict=True)
            answers = await asyncio.gather(*(record_all(one, [new(name) for name in names]) for one, names in pairs))
            assert sum(row.is_new for answer in answers for row in answer) == MAX_ROWS
        await pool.close()

    run(database_url, work)

    with connect(database_url) as own:
        own.execute("SELECT pg_stat_force_next_flush()")
        found = own.execute("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").fetchone()
    assert found == {"deadlocks": 0}
    assert counts(conn)["rows"] == 10 * MAX_ROWS
