"""What an agent and a controller of the release before said to each other, byte by byte.

Two pushes of a worker that measured steps and was asked for affinity, its registration and its
watch; their answers, the refusal of a third push whose load was cut short, and a plan of epoch 7
that swaps experts 1 and 2.
"""

import json
from pathlib import Path

_SAID = json.loads(Path(__file__).with_suffix(".json").read_text())

PUSHES, PUSHED, REFUSED = (
    [bytes.fromhex(one) for one in _SAID[name]] for name in ("pushes", "pushed", "refused")
)
REGISTRATION, REGISTERED, WATCH, OFFERED = (
    bytes.fromhex(_SAID[name]) for name in ("registration", "registered", "watch", "offered")
)
