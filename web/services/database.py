"""PostgreSQL for requests: a few threads, a connection each, and a time limit on the wait."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from db.connection import Connection, Database
from moorage import logs
from moorage.errors import DatabaseUnavailable
from web.http.problems import unavailable

T = TypeVar("T")

log = logs.get_logger(__name__)

ANSWER_SECONDS: Final = 5.0
MAX_THREADS: Final = 8

# Else a job could be shown as settled with the outputs of a moment before.
USE_SNAPSHOT: Final = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


class DatabaseThreads:
    """
    At most eight threads, made when they are needed; each keeps its own connection to PostgreSQL.

    Their own executor and not the loop's: threads that hang with a frozen server stay eight, and whatever waits behind
    them is taken back when its request is answered.
    """

    def __init__(self, database_url: str, *, limit: int = MAX_THREADS, answer_seconds: float = ANSWER_SECONDS) -> None:
        self._database_url = database_url
        self._answer_seconds = answer_seconds
        self._executor = ThreadPoolExecutor(limit, "web")
        self._local = threading.local()
        self._databases: list[Database] = []

    async def run(self, work: Callable[[Database], T]) -> T:
        """
        Return what `work` returns, done in a thread.

        Raises:
            Problem: 503 when PostgreSQL is away or the time is over; `work` may still happen then.
        """
        try:
            async with asyncio.timeout(self._answer_seconds):
                return await asyncio.get_running_loop().run_in_executor(self._executor, self._work, work)
        except TimeoutError as error:
            log.warning("request.too_slow", answer_seconds=self._answer_seconds)
            raise unavailable(f"there was no answer within {self._answer_seconds:g} s: send it again") from error
        except DatabaseUnavailable as error:
            log.warning("request.database_away", error=str(error))  # it may name hosts and users: for us alone
            raise unavailable("PostgreSQL is away: send it again") from error

    async def close(self) -> None:
        """Close the connections once the threads are done; those that hang are left to the end of the process."""
        try:
            async with asyncio.timeout(self._answer_seconds):
                await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)
        except TimeoutError:
            log.warning("threads.hanging")
            return
        for database in self._databases:
            database.close()

    def _work(self, work: Callable[[Database], T]) -> T:
        database: Database | None = getattr(self._local, "database", None)
        if database is None:
            database = self._local.database = Database(self._database_url, name="moorage web")
            self._databases.append(database)
        return work(database)


def read(database: Database, work: Callable[[Connection], T]) -> T:
    """Return what `work` reads, all of it as of one moment."""

    def at_one_moment(conn: Connection) -> T:
        conn.execute(USE_SNAPSHOT)
        return work(conn)

    return database.run(at_one_moment)
