"""Every service of the coordinator's mutual TLS listener, answering with empty messages."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from twinsite.api.coordinator.v1 import admin_pb2, identity_pb2, link_pb2
from twinsite.server import Mount

SERVICES = [
    service for file in (admin_pb2, identity_pb2, link_pb2) for service in file.DESCRIPTOR.services_by_name.values()
]


def stub(service: Any) -> Mount:
    """Every method of a service answers with an empty message, whoever gets that far."""

    async def one(request: bytes, context: Any) -> bytes:
        return b""

    async def many(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b""

    async def both(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for _ in requests:
            yield b""

    def handler(method: Any) -> Any:
        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(both)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(many)
        return grpc.unary_unary_rpc_method_handler(one)

    handlers = {method.name: handler(method) for method in service.methods}
    generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
    return Mount(service, lambda server: server.add_generic_rpc_handlers((generic,)))
