"""What pools were like lately, look by look: figures that the loop has anyway, kept for a day."""

from array import array
from collections.abc import Mapping
from math import nan

from controller.loop import Loop
from placer.report.page import BALANCE, FANOUT, GPUS, IN_TIME, RUNNING, WAITING, Line, line

KEPT_S = 86_400.0
METRICS = (BALANCE, FANOUT, GPUS, WAITING, RUNNING, IN_TIME)


class Recorder:
    """Rows of numbers, one a look and pool: 56 bytes."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._rows: dict[str, dict[str, array[float]]] = {}
        loop.looks["page"] = self.look

    async def look(self) -> None:
        loop, now_s = self._loop, self._loop.ledger.clock.now()
        pools = loop.fleet.pools
        self._rows = {name: rows for name, rows in self._rows.items() if name in pools}
        most = int(KEPT_S / loop.config.every_s)
        for name in list(pools):
            await loop.ledger.clock.sleep(0)  # others are answered between two of a thousand pools
            if name not in pools:
                continue
            rows = self._rows.setdefault(name, {one: array("d") for one in ("at_s", *METRICS)})
            for metric, value in {"at_s": now_s, **self._now(name)}.items():
                rows[metric].append(value)
                if len(rows[metric]) > most + most // 8:  # seldom, since all of it is moved
                    del rows[metric][: len(rows[metric]) - most]

    def lines(self, pool: str, begins_s: float) -> Mapping[str, Line]:
        """Of what is known."""
        if (rows := self._rows.get(pool)) is None:
            return {}
        at_s = [one - begins_s for one in rows["at_s"]]
        found = {metric: line(at_s, rows[metric]) for metric in METRICS}
        return {metric: one for metric, one in found.items() if one.values}

    def _now(self, name: str) -> dict[str, float]:
        """NaN is: not known."""
        loop = self._loop
        pool, settings = loop.fleet.pools[name], loop.config.of(name).autoscale
        found = dict.fromkeys(METRICS, nan)
        found[GPUS] = sum(group.ranks * len(group.engines) for group in pool.groups.values())
        view = loop.view(pool)
        if view is not None and view.score is not None:
            fanout = view.score.fanout_gpus
            found[BALANCE], found[FANOUT] = (
                view.score.balancedness,
                nan if fanout is None else fanout,
            )
        signals = loop.loads.signals(name)
        if settings is not None and signals is not None:
            now, last_s = signals.now.sums, settings.window_s
            found[WAITING], found[RUNNING] = now.waiting, now.running
            found[IN_TIME] = signals.attainment(settings.ttft_s, settings.tpot_s, last_s)
        return found
