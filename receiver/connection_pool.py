"""
A small pool of connections to PostgreSQL, opened on demand.

Not psycopg_pool: after a restart of the server it returns its dead connections one by one with growing pauses, and
its background reconnects back off for minutes. Here a dead connection is detected on its socket without a round trip,
and the first request after the restart connects at once.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from db.connection import has_unread_bytes

Connection = psycopg.AsyncConnection[dict[str, Any]]

MAX_CONNECTIONS: Final = 8


class ConnectionPool:
    """At most eight connections in autocommit mode; the most recently used one is reused first."""

    def __init__(self, url: str, *, limit: int = MAX_CONNECTIONS) -> None:
        self._url = url
        self._slots = asyncio.Semaphore(limit)
        self._idle: list[Connection] = []

    @contextlib.asynccontextmanager
    async def acquire(self) -> AsyncIterator[Connection]:
        """Yield a connection; it is closed after an exception. Raises psycopg.OperationalError: none available."""
        async with self._slots:
            conn = await self._pop_usable() or await self._connect()
            try:
                yield conn
            except BaseException:
                await conn.close()
                raise
            self._idle.append(conn)

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    async def _pop_usable(self) -> Connection | None:
        while self._idle:
            conn = self._idle.pop()
            if not conn.closed and not has_unread_bytes(conn):
                return conn
            await conn.close()
        return None

    async def _connect(self) -> Connection:
        return await psycopg.AsyncConnection.connect(
            self._url,
            autocommit=True,
            row_factory=dict_row,
            prepare_threshold=None,  # PgBouncer in transaction mode
            application_name="moorage receiver",
            connect_timeout=2,
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=10_000,
        )
