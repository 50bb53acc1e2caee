"""Prometheus figures, read from the loop when they are asked for: at most 30 series a pool, none of
them by layer or rank unless asked for; ratios are of the width that most engines have.
docs/controller.md lists them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from controller.changes.plans import PlanState
from controller.fleet.pools import Pool
from controller.loop import Loop
from placer.cost.balance import rank_load
from placer.errors import PlacerError

Family = CounterMetricFamily | GaugeMetricFamily
Values = Mapping[Any, float | None]  # by label values, a tuple


class LoopCollector(Collector):
    """detail: also the load of every layer and rank, layers x ranks series a pool"""

    def __init__(self, loop: Loop, detail: bool = False) -> None:
        self.loop, self.detail = loop, detail

    def collect(self) -> Iterator[Family]:
        """Called on a thread of the HTTP server's."""
        yield _gauge("placer_conditions", "What keeps the controller from its work.", {
            (): len(self.loop.told())
        })  # fmt: skip
        pools = list(self.loop.fleet.pools.values())
        totals = self.loop.arbiter.totals
        for name, what, values in (
            ("balancedness_ratio", "Mean rank load over the largest, mean of layers, now.",
             {(pool.name,): self._balancedness(pool) for pool in pools}),
            ("predicted_gain_ratio", "Of the MoE layers' time, that the applied plan was to save.",
             {(pool.name,): self._gain(pool, "predicted_gain") for pool in pools}),
            ("measured_gain_ratio", "Of the MoE layers' time, that it saves on the traffic of now.",
             {(pool.name,): self._gain(pool, "measured_gain") for pool in pools}),
            ("plan_age_seconds", "Since a plan was applied.",
             {(pool.name,): self._plan_age_s(pool) for pool in pools}),
            ("plan_epoch", "Newest epoch that a worker applied.",
             {(pool.name,): self._newest(pool, "epoch") for pool in pools}),
            ("window_tokens", "Tokens that decisions are made from.",
             {(pool.name,): self._tokens(pool) for pool in pools}),
            ("step_seconds", "A whole step, mean of the window.",
             {(pool.name,): self._pace(pool, "step_s") for pool in pools}),
            ("busy_ratio", "Of the window's time, in which steps ran.",
             {(pool.name,): self._pace(pool, "busy") for pool in pools}),
            ("workers", "Workers that are seen.",
             {(pool.name,): len(pool.members) for pool in pools}),
            ("agent_lag_seconds", "Since the quietest worker was seen.",
             {(pool.name,): self._lag_s(pool) for pool in pools}),
            ("longest_pause_seconds", "Of the last operation.",
             {(pool.name,): totals.longest_pause_s.get(pool.name) for pool in pools}),
        ):  # fmt: skip
            yield _gauge(f"placer_{name}", what, values, ["pool"])
        homed = {
            (pool, by): one
            for pool, homing in self.loop.homings.of.items() for by, one in homing.groups.items()
        }  # fmt: skip
        for name, what, field in (
            ("local_activation_ratio", "Of sampled requests, by how their rank was chosen.",
             "local"),
            ("predicted_local_activation_ratio", "As tables of before they came foretold it.",
             "predicted"),
            ("remote_fanout", "Other GPUs that their tokens are sent to, mean of layers.",
             "remote"),
            ("predicted_remote_fanout", "As tables of before they came foretold it.",
             "predicted_remote"),
            ("distinct_experts", "That a step reads a layer, for requests of this group alone.",
             "distinct"),
            ("predicted_distinct_experts", "As tables of before they came foretold it.",
             "predicted_distinct"),
        ):  # fmt: skip
            shares = {key: getattr(one, field) for key, one in homed.items()}
            yield _gauge(f"placer_{name}", what, shares, ["pool", "by"])
        lost = {(pool.name,): pool.missed for pool in pools}
        yield _counter("placer_dropped_deltas", "Pushes that never came.", lost, ["pool"])
        yield _counter("placer_decisions", "By outcome.", self.loop.counted, ["pool", "outcome"])
        yield _counter("placer_operations", "By how they ended.", totals.ended, ["pool", "phase"])
        yield _counter("placer_copied_bytes", "Weights copied.", totals.copied_bytes, ["pool"])
        yield _counter("placer_moved_slots", "Slots given another expert.", totals.moved, ["pool"])
        if self.detail:
            yield self._rank_loads(pools)

    def _balancedness(self, pool: Pool) -> float | None:
        view = self.loop.view(pool)
        return view.score.balancedness if view and view.score else None

    def _gain(self, pool: Pool, name: str) -> float | None:
        view = self.loop.view(pool)
        return getattr(view, name) if view else None

    def _pace(self, pool: Pool, name: str) -> float | None:
        group = pool.group()
        pace = group.pace(self.loop.config.of(pool.name).phase) if group else None
        return getattr(pace, name) if pace else None

    def _tokens(self, pool: Pool) -> int:
        phase = self.loop.config.of(pool.name).phase
        return sum(group.tokens(phase) for group in pool.groups.values())

    def _plan_age_s(self, pool: Pool) -> float | None:
        applied = self.loop.arbiter.plans.in_state(pool.name, PlanState.APPLIED)
        return self.loop.ledger.age_s(applied[0]) if applied else None

    def _newest(self, pool: Pool, name: str) -> float:
        members = list(pool.members.values())
        return max((getattr(member.registration, name) for member in members), default=0)

    def _lag_s(self, pool: Pool) -> float | None:
        return max(map(self.loop.fleet.silent_s, list(pool.members.values())), default=None)

    def _rank_loads(self, pools: list[Pool]) -> Family:
        """Of the window, on what stood at the last decision."""
        family = GaugeMetricFamily(
            "placer_rank_load_tokens", "In the window.", labels=["pool", "layer", "rank"]
        )
        for pool in pools:
            view = self.loop.view(pool)
            if view is None or view.load is None or view.placement is None:
                continue
            for layer, row in enumerate(rank_load(view.load, view.placement).tolist()):
                for rank, tokens in enumerate(row):
                    family.add_metric([pool.name, str(layer), str(rank)], tokens)
        return family


def serve(loop: Loop, address: str, detail: bool) -> None:
    """On ``host:port``, from threads of its own."""
    registry = CollectorRegistry()
    registry.register(LoopCollector(loop, detail))
    host, _, port = address.rpartition(":")
    try:
        start_http_server(int(port), host or "127.0.0.1", registry)
    except (OSError, ValueError) as error:
        raise PlacerError(f"no metrics on {address} ({error}): give a free host:port") from error


def _gauge(name: str, what: str, values: Values, labels: Sequence[str] = ()) -> Family:
    family = GaugeMetricFamily(name, what, labels=labels)
    for key, value in values.items():
        if value is not None:
            family.add_metric(key, value)
    return family


def _counter(name: str, what: str, values: Values, labels: Sequence[str]) -> Family:
    family = CounterMetricFamily(name, what, labels=labels)
    for key, value in list(values.items()):
        family.add_metric(key, value or 0)
    return family
