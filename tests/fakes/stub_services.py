"""Services that answer with empty messages whoever gets that far, and a caller that tells how far it got."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from twinsite.api.coordinator.v1 import admin_pb2, identity_pb2, link_pb2
from twinsite.channel import Channel
from twinsite.errors import Denied, TwinsiteError, Unauthenticated, Unreachable
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


def shapes(services: Sequence[Any]) -> dict[str, str]:
    """How each method of the services is called, by its full name."""
    return {
        f"/{service.full_name}/{method.name}": (
            "stream_stream" if method.client_streaming else "unary_stream" if method.server_streaming else "unary_unary"
        )
        for service in services
        for method in service.methods
    }


async def call(channel: Channel, method: str, shape: str) -> str:
    """Call a stubbed method; "ok", or the category of the refusal."""
    try:
        if shape == "unary_unary":
            await channel.unary_unary(method)(b"")
        elif shape == "unary_stream":
            assert [message async for message in channel.unary_stream(method)(b"")] == [b""]
        else:
            stream = channel.stream_stream(method)()
            await stream.write(b"")
            assert await stream.read() == b""
            await stream.done_writing()
            assert await stream.read() is grpc.aio.EOF
    except TwinsiteError as error:
        for category in (Denied, Unauthenticated, Unreachable):
            if isinstance(error, category):
                return category.__name__
        raise
    return "ok"
