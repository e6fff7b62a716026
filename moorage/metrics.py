"""
Counters of this process and gauges computed from PostgreSQL, in Prometheus text format.

Only events that one process sees are counted in memory. State is computed at the scrape, so it survives restarts and
does not depend on the number of processes. What pool children of workers count (WORK) is added up in PostgreSQL.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import Metric
from prometheus_client.samples import Sample

# Saves one unused series per counter.
disable_created_metrics()  # type: ignore[no-untyped-call]  # not typed

REGISTRY: Final = CollectorRegistry()
_count = partial(Counter, registry=REGISTRY)

WEBHOOKS_RECORDED: Final = _count(
    "moorage_webhooks_recorded_total", "Webhooks committed as a new delivery.", ["provider"]
)
WEBHOOKS_KNOWN: Final = _count("moorage_webhooks_known_total", "Webhooks that were recorded before.", ["provider"])
WEBHOOKS_REFUSED: Final = _count("moorage_webhooks_refused_total", "Webhooks refused with 4xx, by reason.", ["reason"])
WEBHOOKS_UNAVAILABLE: Final = _count(
    "moorage_webhooks_unavailable_total", "Webhooks answered with 5xx, by reason.", ["reason"]
)
API_UNAVAILABLE: Final = _count("moorage_api_unavailable_total", "API requests answered with 500 or 503.")
WEBHOOK_BYTES: Final = _count("moorage_webhook_bytes_total", "Body bytes of recorded and known webhooks.")
WEBHOOK_SECONDS: Final = Histogram(
    "moorage_webhook_seconds",
    "Time from the start of a POST to its response.",
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0),
    registry=REGISTRY,
)
WAKES_SENT: Final = _count("moorage_wakes_sent_total", "Wakes that this process sent to the broker.")
WAKES_DROPPED: Final = _count("moorage_wakes_dropped_total", "Wakes left to the dispatch sweep, by reason.", ["reason"])
for _reason in ("bad_signature", "not_found", "too_large", "too_slow", "unreadable"):
    WEBHOOKS_REFUSED.labels(_reason)  # from zero on: a rate does not see the start of a series
for _reason in ("database", "keys", "bytes_in_flight", "internal"):
    WEBHOOKS_UNAVAILABLE.labels(_reason)
for _reason in ("full", "failed"):
    WAKES_DROPPED.labels(_reason)

WORK: Final = CollectorRegistry()
_count_work = partial(Counter, registry=WORK)
ATTEMPTS: Final = _count_work(
    "moorage_attempts_total",
    "Claimed rows by what became of them: done, retry or dead (with the category), or interrupted.",
    ["step", "outcome", "category"],
)
PHASE_SECONDS: Final = Histogram(
    "moorage_phase_seconds",
    "Duration of claims of all steps, and of each part of the work on a file.",
    ["phase"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
    registry=WORK,
)
DOWNLOADS: Final = _count_work(
    "moorage_downloads_total", "Downloads by host: class of status, or interrupted.", ["host", "status"]
)
DOWNLOAD_BYTES: Final = _count_work("moorage_download_bytes_total", "Bytes downloaded, by host.", ["host"])
STORED_BYTES: Final = _count_work("moorage_stored_bytes_total", "Bytes of files and thumbnails stored.")
MAX_HOSTS: Final = 30  # with a name: `moorage keep` may download from any
_hosts: set[str] = set()
Total = tuple[str, dict[str, str], float]  # name and labels of a series, and its value


def name_host(host: str, named: set[str] | None = None) -> str:
    """Return the label of a host; add it to those that are named, by default in this process."""
    hosts = _hosts if named is None else named
    if len(hosts) < MAX_HOSTS:
        hosts.add(host)
    return host if host in hosts else "(other)"


@contextmanager
def time_phase(phase: str) -> Iterator[None]:
    """Observe the duration of a block that succeeds."""
    started = time.perf_counter()
    yield
    PHASE_SECONDS.labels(phase).observe(time.perf_counter() - started)


def build_work_families(totals: Sequence[Total]) -> Iterator[Metric]:
    """Return the families of WORK with the series of all workers."""
    for work in WORK.collect():
        names = {f"{work.name}_{suffix}" for suffix in ("total", "bucket", "count", "sum")}
        work.samples = [Sample(*total) for total in totals if total[0] in names]
        yield work
