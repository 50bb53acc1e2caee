"""Numbers that nobody means: beyond these, sums overflow and arrays outgrow all memory."""

from collections.abc import Mapping
from typing import Any

from placer.errors import PlacerError

MOST_LAYERS = 4096
MOST_EXPERTS = 4096  # a layer
MOST_TOP_K = 128
MOST_PAIRS = 2**27  # of experts, in all layers: what counts them has as many numbers


def check_bounds(
    values: Any, bounds: Mapping[str, tuple[float, float]], error: type[PlacerError], name: str
) -> None:
    """Raises ``error`` unless the fields of ``values`` are in ``bounds``, their ends included.

    name: what the error calls ``values``
    """
    for field, (least, most) in bounds.items():
        value = getattr(values, field)
        if not least <= value <= most:  # nor is NaN
            raise error(f"{name}: {field} is {value!r:.40}: it must be {least} to {most}")
