"""Envoy's ExternalProcessor: a stream for each request that a gateway has."""

from typing import Any

import grpc
import grpc.aio

from controller.router.picker import messages
from controller.router.picker.call import Call
from controller.router.shared.request_router import RequestRouter
from controller.router.wire.heads import RefusedError

PROCESS = f"/{messages.SERVICE}/Process"


class Service:
    """only_rank: gateways choose the endpoint themselves"""

    def __init__(self, router: RequestRouter, only_rank: bool) -> None:
        self._router, self._only_rank = router, only_rank

    def add_to(self, server: grpc.aio.Server) -> None:
        process = grpc.stream_stream_rpc_method_handler(
            self.process, messages.Said.FromString, response_serializer=None
        )
        handler = grpc.method_handlers_generic_handler(messages.SERVICE, {"Process": process})
        server.add_generic_rpc_handlers([handler])

    async def process(self, _: Any, context: grpc.aio.ServicerContext) -> None:
        """Until the gateway is done with the request, or gone."""
        call = Call(self._router, self._only_rank)
        try:
            while (said := await context.read()) is not grpc.aio.EOF:
                for answer in await call.take(said):
                    await context.write(answer)
        except RefusedError as error:
            call.refused(error)
            await context.write(messages.refusal(error))
        finally:
            call.end()
