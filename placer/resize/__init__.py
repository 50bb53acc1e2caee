"""From a placement on n ranks to one on m: what stays, what is copied, and how long it takes.

Pages follow ElasticMoE (arXiv 2510.02613): what a device holds already stays where it is, zero
bytes copied; what it lacks comes from another device's memory, or from the checkpoint if nobody
holds it or that is faster. The old range of pages lives until the switch, so that requests are
served until then. Tensor parallelism never changes.

``resized`` chooses the devices of a width, ``resize`` works out the way to a placement that is
given, ``resize_to`` chooses the placement as well.
"""

from placer.resize.devices import Devices, resized
from placer.resize.engine import Engine, Sequence, Speeds
from placer.resize.ledger import NONE, Kind, Ledger, Row
from placer.resize.predict import Seconds
from placer.resize.target import Target, resize_to
from placer.resize.way import Resize, resize
from placer.resize.whole import Part

__all__ = [
    "NONE",
    "Devices",
    "Engine",
    "Kind",
    "Ledger",
    "Part",
    "Resize",
    "Row",
    "Seconds",
    "Sequence",
    "Speeds",
    "Target",
    "resize",
    "resize_to",
    "resized",
]
