"""Stories one after another, in a process of their own: what is told of all, and who failed."""

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from simulations.stories.story import Story, a_story
from simulations.stories.world import Told, tell


@dataclass(frozen=True, slots=True)
class Batch:
    """failed: the stories that broke a rule, and how; seconds: of a core"""

    stories: int
    operations: int
    commands: int
    kills: int
    seconds: float
    failed: Sequence[tuple[Story, Told]]


def tell_all(seeds: Iterable[int]) -> Batch:
    logging.getLogger("placer.controller").setLevel(logging.CRITICAL)
    begun_s, found = time.process_time(), [(one, tell(one)) for one in map(a_story, seeds)]
    told = [one for _, one in found]
    return Batch(
        len(told),
        sum(one.operations for one in told),
        sum(one.commands for one in told),
        sum(one.kills for one in told),
        time.process_time() - begun_s,
        [(story, one) for story, one in found if one.wrong is not None],
    )
