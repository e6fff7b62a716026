"""/metrics, on an address of its own: what is exported is for operators, and no proxy passes it on by mistake."""

import contextlib
from collections.abc import Callable, Iterator

import psycopg
from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.registry import Collector

from db import connection
from db.reports.metrics import collect_gauges
from db.work_totals import read_totals
from moorage import logs, metrics
from moorage.errors import DatabaseUnavailable
from moorage.metrics import Gauge, Total

log = logs.get_logger(__name__)


class _ScrapeCollector(Collector):
    def __init__(self, database_url: str) -> None:
        self._database_url = database_url

    def collect(self) -> Iterator[Metric]:
        """Return all metrics; without PostgreSQL those of this process and `moorage_database_up 0`."""
        gauges, totals, is_up = list[Gauge](), list[Total](), 1.0
        try:
            with contextlib.closing(connection.connect(self._database_url, name="moorage metrics")) as conn:
                gauges = collect_gauges(conn)
                totals = read_totals(conn)
        except (DatabaseUnavailable, psycopg.Error) as error:
            log.warning("metrics.database_unavailable", error=type(error).__name__)
            is_up = 0.0
        up = Gauge("moorage_database_up", "1 if PostgreSQL responded to this scrape.", (), (((), is_up),))
        return metrics.collect_all([up, *gauges], totals)


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
