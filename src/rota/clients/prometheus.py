"""What rota has counted, for Prometheus: read when it is scraped, and at no other time.

    from prometheus_client import REGISTRY

    collector = RotaCollector(client, factory)
    REGISTRY.register(collector)

Who picks and calls pays nothing for it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from rota.clients.snapshot import METRICS, Metric, Sources

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        "rota.clients.prometheus needs prometheus-client: pip install 'rota[prometheus]'"
    ) from error

if TYPE_CHECKING:
    Family = CounterMetricFamily | GaugeMetricFamily

__all__ = ["RotaCollector"]


class RotaCollector(Sources, Collector):
    """Shows clients, factories, budgets, selectors and pickers to Prometheus.

    Parameters
    ----------
    sources : balanced clients, factories, budgets, selectors or pickers
        Held weakly: who is let go is shown no more. `add` shows more, under names of your own.
    instances : bool
        Whether there are samples of each instance. False: of services only, with the label
        "instance" empty, and none of pickers.

    Raises
    ------
    TypeError
        A source of another kind, or that cannot be held weakly.

    Notes
    -----
    One collector a registry: two would have the same names. `REGISTRY.unregister(collector)` ends
    it.
    """

    def collect(self) -> "Iterator[Family]":
        """Yield all metrics, as they are now. O(instances)."""
        for metric, samples in self.samples().items():
            family = _family(metric)
            for labels, value in samples:
                family.add_metric(labels, value)
            yield family

    def describe(self) -> "Iterator[Family]":
        """Yield all metrics without samples: what a registry asks whoever is registered."""
        return map(_family, METRICS)


def _family(metric: Metric) -> "Family":
    name = "rota_" + metric.name.replace(".", "_") + ("_seconds" if metric.unit == "s" else "")
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return kind(name, metric.description, labels=metric.labels)
