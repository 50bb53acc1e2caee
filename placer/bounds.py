"""Numbers that nobody means: beyond these, sums overflow and arrays outgrow all memory."""

from collections.abc import Mapping
from typing import Any

from placer.errors import PlacerError

MOST_EXPERTS = 4096  # a layer: no model has as many, and pairs of them still fit into memory


def check_bounds(
    values: Any, bounds: Mapping[str, tuple[float, float]], error: type[PlacerError], name: str
) -> None:
    """Raises ``error`` unless the fields of ``values`` are in ``bounds``, their ends included.

    name: what the error calls ``values``
    """
    for field, (least, most) in bounds.items():
        value = getattr(values, field)
        if not least <= value <= most:  # nor is NaN
            raise error(f"{name}: {field} is {value:.6g}: it must be {least:.6g} to {most:.6g}")
