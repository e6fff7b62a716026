"""The text of /metrics, without a receiver."""

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.registry import Collector

from moorage import metrics
from moorage.metrics import Total


class _AllCollector(Collector):
    def __init__(self, totals: Sequence[Total]) -> None:
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        yield from metrics.REGISTRY.collect()
        yield from metrics.build_work_families(self._totals)


def read_series(gauge: Metric) -> dict[tuple[str, ...], float]:
    """Return the values of a gauge by the values of their labels."""
    return {tuple(sample.labels.values()): sample.value for sample in gauge.samples}


def render_metrics(totals: Sequence[Total] = ()) -> str:
    """Return what this process and the totals would be exported as."""
    registry = CollectorRegistry()
    registry.register(_AllCollector(totals))
    return generate_latest(registry).decode()
