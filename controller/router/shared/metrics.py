"""Prometheus metrics, in the names of vLLM's router and of OpenTelemetry; docs/front.md lists them.

Counted in plain numbers, and made into series when somebody asks, which may be another thread.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from math import inf
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from controller.router.pool.endpoints import Endpoint, Endpoints

# Those of vLLM's router, which OpenTelemetry's lie between.
BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 45.0,
          60.0, 90.0, 120.0, 180.0, 240.0)  # fmt: skip
Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily
Key = tuple[str, ...]


class _Durations:
    """counts: in each bucket, the last of which has no end"""

    def __init__(self) -> None:
        self.counts, self.total_s = [0] * (len(BOUNDS) + 1), 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS, seconds)] += 1
        self.total_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        upto, found = 0, []
        for bound, count in zip((*BOUNDS, inf), self.counts, strict=True):
            upto += count
            found.append(("+Inf" if bound == inf else str(bound), float(upto)))
        return found


class RouterMetrics(Collector):
    """held: requests that had to wait for an engine; cut: streams, by what came of them"""

    def __init__(self, endpoints: Endpoints) -> None:
        self.active = 0
        self.held = 0
        self.cut: Counter[str] = Counter()
        self._durations: dict[tuple[str, bytes, int], _Durations] = {}
        self._errors: Counter[Key] = Counter()
        self._retries: Counter[Key] = Counter()
        self._exhausted: Counter[Key] = Counter()
        self._endpoints = endpoints
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(self)

    def ended(self, route: str, method: bytes, status: int, seconds: float, fault: str) -> None:
        key = route, method, status
        if (known := self._durations.get(key)) is None:
            known = self._durations[key] = _Durations()
        known.add(seconds)
        if fault:
            self._errors[route, fault] += 1

    def retried(self, route: str) -> None:
        self._retries[(route,)] += 1

    def exhausted(self, route: str) -> None:
        self._exhausted[(route,)] += 1

    def text(self, active: int) -> bytes:
        """active: requests under way"""
        self.active = active
        return generate_latest(self.registry)

    def describe(self) -> Iterable[Family]:
        return ()

    def collect(self) -> Iterator[Family]:
        otel = HistogramMetricFamily(
            "http_server_request_duration_seconds", "Of requests, to their last byte.",
            labels=["http_request_method", "http_route", "http_response_status_code"],
        )  # fmt: skip
        routes: dict[str, _Durations] = {}
        for (route, method, status), one in list(self._durations.items()):
            otel.add_metric([method.decode(), route, str(status)], one.buckets(), one.total_s)
            whole = routes.setdefault(route, _Durations())
            whole.counts = [sum(both) for both in zip(whole.counts, one.counts, strict=True)]
            whole.total_s += one.total_s
        yield otel
        ours = HistogramMetricFamily(
            "vllm_router_request_duration_seconds", "Of requests, by route.", labels=["route"]
        )
        for route, whole in routes.items():
            ours.add_metric([route], whole.buckets(), whole.total_s)
        yield ours
        counts = {(route,): sum(whole.counts) for route, whole in routes.items()}
        yield _counter("vllm_router_requests", "That ended.", ["route"], counts)
        yield _counter(
            "vllm_router_request_errors",
            "By what was wrong.",
            ["route", "error_type"],
            self._errors,
        )
        yield _counter("vllm_router_retries", "Sent again.", ["route"], self._retries)
        yield _counter("vllm_router_retries_exhausted", "Given up.", ["route"], self._exhausted)
        yield _counter("placer_front_held", "That waited for an engine.", [], {(): self.held})
        cut = {(name,): count for name, count in self.cut.items()}
        yield _counter("placer_front_cut_streams", "By what came of them.", ["outcome"], cut)
        yield _gauge("http_server_active_requests", "Under way.", [], {(): self.active})
        yield from self._workers(list(self._endpoints.all.values()))

    def _workers(self, them: list[Endpoint]) -> Iterator[Family]:
        label = ["worker"]
        for name, what, values in (
            ("vllm_router_worker_health", "Whether it takes requests.",
             {(one.url,): float(one.is_open) for one in them}),
            ("vllm_router_running_requests", "Of this front.",
             {(one.url,): float(sum(one.own.values())) for one in them}),
            ("vllm_router_worker_load", "Requests of everybody, as it says itself.",
             {(one.url,): sum(one.present.values()) for one in them}),
        ):  # fmt: skip
            yield _gauge(name, what, label, values)
        served = {(one.url,): one.served for one in them}
        yield _counter("vllm_router_processed_requests", "Sent there.", label, served)
        healthy = {(): sum(one.is_open for one in them)}
        yield _gauge("vllm_router_active_workers", "That take requests.", [], healthy)


def _counter(name: str, what: str, labels: list[str], values: Mapping[Any, float]) -> Family:
    family = CounterMetricFamily(name, what, labels=labels)
    for key, value in list(values.items()):
        family.add_metric(key, value)
    return family


def _gauge(name: str, what: str, labels: list[str], values: Mapping[Any, float]) -> Family:
    family = GaugeMetricFamily(name, what, labels=labels)
    for key, value in list(values.items()):
        family.add_metric(key, value)
    return family
