"""How a pool's size follows its load: what an operator may set; docs/autoscaling.md explains it."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from placer.errors import FileError

AutoscalePolicy = Literal["quantile", "threshold", "horizontal"]


@dataclass(frozen=True, slots=True)
class Autoscale:
    """How a pool's size follows its load; docs/autoscaling.md has the rules.

    policy:          ``quantile``, ``threshold`` or ``horizontal``
    ttft_s, tpot_s:  seconds to a request's first token, and to each of the others
    attainment:      share of requests that should keep to them
    least, most:     ranks of an engine
    step:            ranks by which a width changes
    max_gpus:        of all engines of the pool; None: as ``most`` says
    every_s:         between two looks at the load
    window_s:        of the load that the size is made for
    stabilisation_s: in which nothing larger was wanted, before the pool gets smaller
    cooldown_s:      after a change of size, before the next
    load:            share of full speed that ranks should run at, or below which the pool
                     gets smaller if the policy is ``threshold``
    quantile:        of the load in the window, if it is ``quantile``
    requests:        that a rank should have, running or waiting (horizontal)
    """

    policy: AutoscalePolicy = "quantile"
    ttft_s: float = 2.0
    tpot_s: float = 0.1
    attainment: float = 0.9
    least: int = 1
    most: int = 16
    step: int = 1
    max_gpus: int | None = None
    every_s: float = 1.0
    window_s: float = 60.0
    stabilisation_s: float = 60.0
    cooldown_s: float = 5.0
    load: float = 0.8
    quantile: float = 0.9
    requests: float = 8.0

    @property
    def widths(self) -> range:
        """Of an engine."""
        return range(self.least, self.most + 1, self.step)


class Spec(BaseModel):
    """Settings as they are written. What is null is as if it were not there."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, told: Any) -> Any:
        if not isinstance(told, dict):
            return told
        return {key: value for key, value in told.items() if value is not None}


class AutoscaleSpec(Spec):
    policy: AutoscalePolicy = "quantile"
    ttft_s: float = Field(default=2.0, gt=0)
    tpot_s: float = Field(default=0.1, gt=0)
    attainment: float = Field(default=0.9, gt=0, le=1)
    ranks: tuple[PositiveInt, PositiveInt] = (1, 16)
    step: int = Field(default=1, ge=1)
    max_gpus: int | None = Field(default=None, ge=1)
    every_s: float = Field(default=1.0, ge=0.1)
    window_s: float = Field(default=60.0, gt=0, le=1800)
    stabilisation_s: float = Field(default=60.0, ge=0, le=1800)
    cooldown_s: float = Field(default=5.0, ge=0)
    load: float = Field(default=0.8, gt=0, le=2)
    quantile: float = Field(default=0.9, gt=0, le=1)
    requests: float = Field(default=8.0, gt=0)

    def checked(self) -> Autoscale:
        least, most = self.ranks
        if least > most:
            raise FileError(f"autoscale: ranks are {least} to {most}: write the smaller first")
        told = self.model_dump(exclude={"ranks"})
        return Autoscale(**told, least=least, most=most)
