"""An oracle: it sees the arrivals of the next seconds, with their sizes, and what waits.

Requests are served in the order in which they come, each within its objective if all work before
it is done by then. So of every request that waits or comes soon,

    ranks >= work up to and with it / (full speed * (its deadline - when a change would be done))

and the most that one of them asks for is the width. What is too late already is no reason to hurry.
It gets smaller at once, since it sees whether more comes. What a rule could do that knew so much,
with the same widths, delay and looks; not all that is possible, since it looks now and then.
"""

from math import ceil

import numpy as np

from controller.policies.policy import Decision, Seen, Size
from controller.size_settings import Autoscale
from simulations.pool import PoolModel


class Clairvoyant:
    """ahead_s: that it sees; delay_s: of a change; aim_s: to the first token that it plans for, the
    objective less what looks and steps take"""

    def __init__(self, settings: Autoscale, ahead_s: float, delay_s: float, aim_s: float) -> None:
        self.settings, self.ahead_s, self.delay_s, self.aim_s = settings, ahead_s, delay_s, aim_s

    def __call__(self, seen: Seen, pool: PoolModel) -> Decision:
        settings, come = self.settings, pool.arrivals
        first, last = (
            pool.started,
            int(np.searchsorted(come.at_s, pool.now_s + self.ahead_s, "right")),
        )
        work = np.cumsum(come.prompt[first:last]) / pool.rank.prompt_tokens_per_s
        left_s = come.at_s[first:last] + self.aim_s - pool.now_s
        during = pool.ranks * np.minimum(self.delay_s, left_s)  # done before the change is
        later_s = np.maximum(left_s - self.delay_s, 1e-9)
        needs = np.where(left_s > self.delay_s, (work - during) / later_s, 0.0)
        wanted = ceil(max(needs.max(initial=0.0), settings.least))
        ranks = min(max(wanted, settings.least), settings.most)
        if ranks == pool.ranks:
            return Decision("hold", "as it is")
        return Decision("act", f"{wanted} ranks", size=Size(ranks), wish=ranks)
