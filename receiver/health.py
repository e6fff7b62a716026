"""/healthz and /readyz."""

import asyncio
import time
from typing import Final

import psycopg

from db import write_probe
from db.migrate import SCHEMA_VERSION
from receiver.connection_pool import ConnectionPool
from receiver.responses import Response, json_response, problem_response

CACHE_SECONDS: Final = 1.0  # a result of /readyz is reused for so long
QUERY_SECONDS: Final = 2.0

VERSION = "SELECT coalesce(max(version), 0) AS version FROM schema_migrations"


class Readiness:
    """Checks that webhooks can be recorded, at most every CACHE_SECONDS. The broker is not required."""

    def __init__(self, connections: ConnectionPool) -> None:
        self._connections = connections
        self._lock = asyncio.Lock()
        self._query: asyncio.Task[str | None] | None = None
        self._problem: str | None = None
        self._until = float("-inf")

    async def check(self) -> Response:
        async with self._lock:
            if time.monotonic() >= self._until:
                self._problem = await self._find_problem()
                self._until = time.monotonic() + CACHE_SECONDS
        if self._problem is None:
            return json_response(200, {"status": "ready"})
        return problem_response(503, self._problem, (b"retry-after", b"1"))

    async def _find_problem(self) -> str | None:
        """Query within QUERY_SECONDS. A query that hangs also delays its cancellation: none is started beside it."""
        if self._query is None or self._query.done():
            self._query = asyncio.create_task(self._query_problem())
            await asyncio.wait({self._query}, timeout=QUERY_SECONDS)
        if self._query.done():
            return self._query.result()
        self._query.cancel()
        return f"PostgreSQL did not write within {QUERY_SECONDS:g} s: check its load, its disk and its standbys"

    async def _query_problem(self) -> str | None:
        try:
            async with self._connections.acquire() as conn:
                row = await (await conn.execute(VERSION)).fetchone()
                version = row["version"] if row else 0
                if version < SCHEMA_VERSION:
                    needed = f"this receiver needs {SCHEMA_VERSION}: run `moorage migrate`"
                    return f"the database has schema {version} and {needed}"
                await conn.execute(write_probe.WRITE_PROBE)
        except psycopg.Error as error:
            return write_probe.describe_refusal(error)
        return None
