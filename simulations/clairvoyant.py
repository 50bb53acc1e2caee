"""An oracle: it sees the arrivals of the next seconds, with their sizes, and what waits.

Requests are served in the order in which they come. They keep to their objective if, from now or
from whenever one of them comes, all that comes until any later one is computed by the deadline of
that; what is computed before a change is done, on as many ranks as there are, is taken off:

    ranks >= (work between - ranks now * time before the change) / time after it until the deadline

and the most that any of these asks for is the width. Whose deadline is before the change is done is
no reason to hurry.
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
        at_s = np.maximum(come.at_s[first:last], pool.now_s) - pool.now_s
        due_s = come.at_s[first:last] + self.aim_s - pool.now_s
        work = np.cumsum(come.prompt[first:last]) / pool.rank.prompt_tokens_per_s
        begin_s, begins = np.unique(at_s, return_index=True)
        between = work - np.concatenate(([0.0], work))[begins, None]
        delay_s, start_s = self.delay_s, begin_s[:, None]
        before = pool.ranks * np.maximum(np.minimum(due_s, delay_s) - start_s, 0.0)
        after_s = due_s - np.maximum(start_s, delay_s)
        counts = (due_s > delay_s) & (np.arange(len(work)) >= begins[:, None])
        needs = np.where(counts, (between - before) / np.where(counts, after_s, 1.0), 0.0)
        wanted = ceil(max(needs.max(initial=0.0), settings.least))
        ranks = min(max(wanted, settings.least), settings.most)
        if ranks == pool.ranks:
            return Decision("hold", "as it is")
        return Decision("act", f"{wanted} ranks", size=Size(ranks), wish=ranks)
