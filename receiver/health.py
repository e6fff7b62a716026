"""
What operators read: /readyz, and /metrics on an address of its own.

What /metrics exports is for operators alone, and no proxy passes it on by mistake.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Final

import psycopg
from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from db import connection, write_probe
from db.migrate import SCHEMA_VERSION
from db.reports.metrics import collect_gauges
from moorage import logs, metrics
from moorage.errors import DatabaseUnavailable
from receiver.connection_pool import ConnectionPool
from receiver.responses import Response, json_response, problem_response

log = logs.get_logger(__name__)

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


class _ScrapeCollector(Collector):
    def __init__(self, database_url: str) -> None:
        self._database_url = database_url

    def collect(self) -> Iterator[Metric]:
        """Return all metrics; without PostgreSQL those of this process and `moorage_database_up 0`."""
        gauges, is_up = list[Metric](), 1.0
        try:
            with contextlib.closing(connection.connect(self._database_url, name="moorage metrics")) as conn:
                gauges = collect_gauges(conn)
        except (DatabaseUnavailable, psycopg.Error) as error:
            log.warning("metrics.database_unavailable", error=type(error).__name__)
            is_up = 0.0
        up = GaugeMetricFamily("moorage_database_up", "1 if PostgreSQL responded to this scrape.", is_up)
        yield from (*metrics.REGISTRY.collect(), up, *gauges)


def serve_metrics(address: str, database_url: str) -> Callable[[], None]:
    """
    Serve HOST:PORT in threads; return what stops it. A scrape never occupies a connection of the pool.

    A receiver that cannot listen there accepts webhooks nevertheless: another one on this machine may have the port.
    """
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry()
    registry.register(_ScrapeCollector(database_url))
    try:
        server, _ = start_http_server(int(port), host.strip("[]"), registry)
    except OSError as error:
        advice = "set MOORAGE_METRICS_ADDRESS to a free HOST:PORT, or to off"
        log.warning("metrics.not_served", address=address, error=str(error), advice=advice)
        return lambda: None

    def stop() -> None:
        server.shutdown()
        server.server_close()

    return stop
