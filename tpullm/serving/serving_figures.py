"""`/metrics`: what the server and its engines have done, in the text format of Prometheus."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
# Of `Engine.figures`; the others go up and down.
_SUMS = ("prompt_tokens", "reused_tokens", "new_tokens", "guesses", "right_guesses")


class ServingFigures:
    """The figures of one server.

    Args:
        of_engines: the figures of each engine, by the model's name.
    """

    def __init__(self, of_engines: Callable[[], dict[str, dict[str, float]]]):
        self._registry = CollectorRegistry()
        self._registry.register(_Engines(of_engines))
        about = "HTTP requests, by path and status"
        self._requests = Counter("tpullm_requests", about, ("path", "status"), registry=self._registry)
        about = "from a request to its whole answer"
        self._seconds = Histogram("tpullm_request_seconds", about, buckets=SECONDS, registry=self._registry)

    def answered(self, path: str, status: int) -> None:
        """Count a request. `path` must be one of the server's own: each has a counter."""
        self._requests.labels(path, str(status)).inc()

    def took(self, seconds: float) -> None:
        """A whole answer took so long."""
        self._seconds.observe(seconds)

    def text(self) -> bytes:
        """All figures."""
        return generate_latest(self._registry)


class _Engines(Collector):
    def __init__(self, figures: Callable[[], dict[str, dict[str, float]]]):
        self._figures = figures

    def describe(self) -> list:
        """Nothing, so that engines are not asked before they are ready."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily | CounterMetricFamily]:
        """A figure of all engines at a time."""
        found = self._figures()
        for name in dict.fromkeys(name for figures in found.values() for name in figures):
            family = CounterMetricFamily if name in _SUMS else GaugeMetricFamily
            metric = family(f"tpullm_{name}", f"{name.replace('_', ' ')} of the engine", labels=("model",))
            for model, figures in found.items():
                metric.add_metric((model,), figures.get(name, 0.0))
            yield metric
