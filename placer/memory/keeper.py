"""The keeper: a process that holds the descriptors of all arenas, so that the death of whoever made
one loses nothing."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from placer.memory.process import answer


@dataclass(frozen=True, slots=True)
class Keep:
    """Hold the descriptor that comes with this, in place of an earlier one of that name."""

    name: str


@dataclass(frozen=True, slots=True)
class Give:
    """Answered with the descriptor, or none."""

    name: str


@dataclass(frozen=True, slots=True)
class Drop:
    """Hold it no longer."""

    name: str


class Keeper:
    def __init__(self) -> None:
        self._held: dict[str, int] = {}

    def reply(self, message: Any, descriptors: list[int]) -> tuple[object, Sequence[int]]:
        match message:
            case Keep(name):
                self._drop(name)
                self._held[name] = os.dup(descriptors[0])
            case Give(name):
                return name in self._held, [self._held[name]] if name in self._held else []
            case Drop(name):
                self._drop(name)
        return None, ()

    def _drop(self, name: str) -> None:
        if (held := self._held.pop(name, None)) is not None:
            os.close(held)


def main(descriptor: int) -> None:
    answer(descriptor, Keeper().reply)
