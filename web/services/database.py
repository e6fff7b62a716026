"""PostgreSQL for requests: a few threads with a connection each, and a time limit."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from db.connection import Connection, Database
from moorage import logs
from moorage.errors import DatabaseLocked, DatabaseUnavailable
from web.http.problems import unavailable

T = TypeVar("T")

log = logs.get_logger(__name__)

ANSWER_SECONDS: Final = 5.0
MAX_THREADS: Final = 8

# Otherwise a job could be shown as settled with outputs read before it settled.
USE_SNAPSHOT: Final = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


class DatabaseThreads:
    """Threads with a connection each. Not the loop's executor, which an unresponsive server would block."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._executor = ThreadPoolExecutor(MAX_THREADS, "web", self._open_database)
        self._local = threading.local()
        self._databases: list[Database] = []

    async def run(self, work: Callable[[Database], T]) -> T:
        """Run `work` in a thread. Raises Problem: 503 unavailable or too slow, `work` may still complete then."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await asyncio.get_running_loop().run_in_executor(
                    self._executor, lambda: work(self._local.database)
                )
        except TimeoutError as error:
            log.warning("request.database_timeout", answer_seconds=ANSWER_SECONDS)
            raise unavailable(f"no response within {ANSWER_SECONDS:g} s: retry") from error
        except DatabaseUnavailable as error:
            log.warning("request.database_unavailable", error=str(error))  # may name hosts and users: log only
            raise unavailable("database unavailable, retry") from error
        except DatabaseLocked as error:
            log.warning("request.database_locked", error=str(error))
            raise unavailable("a row is locked by another transaction, retry") from error

    async def transaction(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction and return its result; raises as `run` does."""
        return await self.run(lambda database: database.run(work))

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a read-only transaction with one snapshot and return its result; raises as `run` does."""

        def read_snapshot(conn: Connection) -> T:
            conn.queue(USE_SNAPSHOT)
            return work(conn)

        return await self.transaction(read_snapshot)

    async def close(self) -> None:
        """Close the connections after the threads have ended; threads that hang end with the process."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await asyncio.to_thread(self._executor.shutdown, cancel_futures=True)
        except TimeoutError:
            log.warning("db_threads.shutdown_timeout")
            return
        for database in self._databases:
            database.close()

    def _open_database(self) -> None:
        self._local.database = Database(self._database_url, name="moorage web")  # connects at its first use
        self._databases.append(self._local.database)
