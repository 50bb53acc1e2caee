"""The shortest story that still fails: Zeller's delta debugging over its events."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from simulations.stories.story import Event, Story
from simulations.stories.world import tell


def shortest(story: Story, rule: str) -> Story:
    """Of the story's events those that are needed to break the rule; without one of them it holds.
    Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input" (2002), ddmin."""

    def fails(events: Sequence[Event]) -> bool:
        wrong = tell(replace(story, events=tuple(events))).wrong
        return wrong is not None and wrong.rule == rule

    return replace(story, events=tuple(minimal(story.events, fails)))


def minimal(events: Sequence[Event], fails: Callable[[Sequence[Event]], bool]) -> Sequence[Event]:
    """fails: of them all, it does"""
    if fails(()):
        return ()
    parts = 2
    while len(events) >= 2:
        size = -(-len(events) // parts)
        for start in range(0, len(events), size):
            rest = [*events[:start], *events[start + size :]]
            if rest and fails(rest):
                events, parts = rest, max(parts - 1, 2)
                break
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(events))
    return events
