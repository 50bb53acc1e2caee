"""The gRPC server: its services, who may call them, and its limits."""

from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import SERVICE_NAME as HEALTH
from grpc_health.v1.health import aio as health
from grpc_reflection.v1alpha import reflection

from controller.engines.vllm_engines import VllmEngines
from controller.loop import Loop
from controller.pool_policies import PoolPolicies
from controller.server.fleet_state import FleetState, Ledgers
from controller.server.intake import Intake
from controller.server.policies import Policies
from controller.server.security import Guard, Listening, Role, SecurityError, Tokens
from controller.server.services import Placements, Profiles
from controller.server.strangers import Spacing
from placer.files.plans import LIMIT
from placer.messages import PUSH_BYTES
from placer.v1 import fleet_pb2, placement_pb2, policy_pb2, profile_pb2
from placer.v1.fleet_pb2_grpc import (
    add_FleetServiceServicer_to_server,
    add_LedgerServiceServicer_to_server,
)
from placer.v1.placement_pb2_grpc import add_PlacementServiceServicer_to_server
from placer.v1.policy_pb2_grpc import add_PolicyServiceServicer_to_server
from placer.v1.profile_pb2_grpc import add_ProfileServiceServicer_to_server

OPTIONS = [
    ("grpc.max_send_message_length", LIMIT),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
    ("grpc.so_reuseport", 0),  # a second controller on this port is a mistake
]
FOR_OTHERS = {
    "/placer.v1.ProfileService/Push": Role.AGENT,
    "/placer.v1.FleetService/Register": Role.AGENT,
    "/placer.v1.PlacementService/Watch": Role.AGENT,
    "/placer.v1.ProfileService/ReadTraces": Role.TRACE_READER,
    "/placer.v1.PlacementService/Tables": Role.TABLES,
    "/placer.v1.FleetService/Status": Role.SEE,
}
SERVICES = [
    file.DESCRIPTOR.services_by_name[name].full_name
    for file in (fleet_pb2, placement_pb2, policy_pb2, profile_pb2)
    for name in file.DESCRIPTOR.services_by_name
]
OTHERS = [HEALTH, reflection.SERVICE_NAME]


async def start(
    loop: Loop, offers: VllmEngines, policies: PoolPolicies, listening: Listening
) -> tuple[Any, int]:
    """The server, which serves, and its port."""
    tokens = Tokens(listening.tokens) if listening.tokens else None
    doors = [Guard(FOR_OTHERS, tokens, loop.ledger.clock), Intake()]
    options = [*OPTIONS, ("grpc.max_receive_message_length", PUSH_BYTES)]
    refusals = Spacing(loop.ledger.clock)
    server = grpc.aio.server(interceptors=doors, options=options)
    add_ProfileServiceServicer_to_server(Profiles(loop, refusals), server)
    placements = Placements(loop, refusals, offers)
    add_PlacementServiceServicer_to_server(placements, server)
    add_FleetServiceServicer_to_server(FleetState(loop, refusals), server)
    add_LedgerServiceServicer_to_server(Ledgers(loop, refusals), server)
    add_PolicyServiceServicer_to_server(Policies(policies, refusals), server)
    probed = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(probed, server)
    reflection.enable_server_reflection([*SERVICES, *OTHERS], server)
    port = listening.open_port(server)

    async def look_at_certificates() -> None:
        if faults := listening.credentials.faults(loop.ledger.clock.now()):
            raise SecurityError("; ".join(faults))

    loop.looks["certificates"] = look_at_certificates
    loop.looks["homes"] = placements.tables.look_at_homes
    await server.start()
    for name in ("", *SERVICES):
        await probed.set(name, health_pb2.HealthCheckResponse.SERVING)
    return server, port
