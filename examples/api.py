"""Ask a controller, over gRPC, how its pools stand and what it would do now. Nothing changes.

    pip install moe-placer
    python examples/api.py 127.0.0.1:7077

Tokens and certificates are read from the environment, as by `placer status` (docs/controller.md).
"""

import sys

from placer.channel import Settings, open_channel
from placer.client import Controller
from placer.v1.fleet_pb2 import StatusRequest
from placer.v1.placement_pb2 import PlanRequest


def main(address: str) -> None:
    settings = Settings.of_environment()
    controller = Controller(address, open_channel(address, settings), settings)
    for pool in controller.ask(controller.fleet.Status, StatusRequest()).pools:
        answer = controller.ask(controller.placement.Plan, PlanRequest(pool=pool.name), 60.0)
        print(f"{pool.name}: {answer.outcome}: {answer.reason}")


if __name__ == "__main__":
    main(*sys.argv[1:])
