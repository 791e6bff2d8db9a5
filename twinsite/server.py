"""Serving: one listener with its gate, its limits, the health service and an orderly end."""

import errno
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from twinsite.access import MEMBERS, Gate, Rule, check_complete, methods_of
from twinsite.errors import Precondition
from twinsite.tls import ServerCredentials
from twinsite.units import KiB, MiB

if TYPE_CHECKING:
    from twinsite.access import AnyService


class CannotListen(Precondition):
    public = "cannot listen on {error.address}: {error.why}"
    still_works = "nothing was started on this address"
    next_step = "correct the address in the settings"

    def __init__(self, address: str, why: str) -> None:
        self.address, self.why = address, why


class PortInUse(CannotListen):
    next_step = "stop the program that has it (`ss -ltnp` names it), or choose another port in the settings"

    def __init__(self, address: str) -> None:
        super().__init__(address, "another program has this port")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer can make us hold. Dead peers are noticed in `ping_every + ping_within` seconds."""

    message_bytes: int
    concurrent_calls: int = 256  # of the whole listener; the next one gets RESOURCE_EXHAUSTED at once
    streams_per_connection: int = 64
    ping_every: int = 10
    ping_within: int = 8


# 4 MiB, not less: an inventory snapshot is one message, and a site of 1000 VMs with four disks each takes about 1 MiB.
CONTROL: Final = Limits(message_bytes=4 * MiB)
# A batch carries up to 4 MiB of frames behind its header of descriptors.
DATA: Final = Limits(message_bytes=4 * MiB + 64 * KiB)
# Strangers: a signing request and a password, few at a time.
ENROLLMENT: Final = Limits(message_bytes=64 * KiB, concurrent_calls=64, streams_per_connection=8)


@dataclass(frozen=True, slots=True)
class Mount:
    """A service, and how it is put on a server: `lambda server: add_XServicer_to_server(servicer, server)`."""

    descriptor: "AnyService"
    attach: Callable[[grpc.aio.Server], None]


class Running:
    """A listener that serves. `address` has the real port."""

    def __init__(self, server: grpc.aio.Server, address: str, healthy: health.aio.HealthServicer) -> None:
        self.address = address
        self._server, self._health = server, healthy

    async def stop(self, grace: float = 5.0) -> None:
        """Take no new calls; those that run have `grace` seconds to end before they are cancelled."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)


async def serve(
    address: str,
    mounts: Sequence[Mount],
    *,
    credentials: ServerCredentials,
    gate: Gate,
    limits: Limits = CONTROL,
    reflection: bool = False,
) -> Running:
    """Listen on `host:port` (port 0: any free one). Raises PortInUse, CannotListen, MissingRule.

    Health is served beside the mounts, reflection if asked for: to members of the vault, and on a listener that asks
    for no client certificate to anyone.
    """
    callers = MEMBERS if credentials.require_client else frozenset({"anyone"})
    own: list[AnyService] = [health_pb2.DESCRIPTOR.services_by_name["Health"]]
    if reflection:
        own += _reflection_services()
    gate.include(dict.fromkeys(methods_of(own), Rule(callers)))
    check_complete(gate.table, [*(mount.descriptor for mount in mounts), *own])
    host, port = _probe(address)
    server = grpc.aio.server(
        interceptors=[gate], options=_options(limits), maximum_concurrent_rpcs=limits.concurrent_calls
    )
    for mount in mounts:
        mount.attach(server)
    healthy = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    if reflection:
        from grpc_reflection.v1alpha import reflection as reflecting

        names = [mount.descriptor.full_name for mount in mounts]
        reflecting.enable_server_reflection([*names, *(service.full_name for service in own)], server)
    try:
        port = server.add_secure_port(f"{host}:{port}", credentials.grpc)
    except RuntimeError:
        raise PortInUse(address) from None  # it was free a moment ago
    await server.start()
    await healthy.set("", health_pb2.HealthCheckResponse.SERVING)
    return Running(server, f"{host}:{port}", healthy)


def _options(limits: Limits) -> list[tuple[str, Any]]:
    return [
        ("grpc.so_reuseport", 0),  # else a second process may bind the same port and take connections
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.server_handshake_timeout_ms", 5_000),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.max_connection_age_ms", 3_600_000),  # streams are resumable; a connection is not for ever
        ("grpc.max_connection_age_grace_ms", 600_000),
        ("grpc.max_concurrent_streams", limits.streams_per_connection),
        ("grpc.keepalive_time_ms", limits.ping_every * 1000),
        ("grpc.keepalive_timeout_ms", limits.ping_within * 1000),
        ("grpc.http2.ping_timeout_ms", limits.ping_within * 1000),  # else 60 s, whatever the line above says
        # Clients ping as often as we do; without this they would be told "too many pings".
        ("grpc.http2.min_ping_interval_without_data_ms", limits.ping_every * 500),
    ]


def _probe(address: str) -> tuple[str, int]:
    """Host and port, after a bind that tells why it fails: gRPC only says that it did."""
    host, _, text = address.rpartition(":")
    if not host or not text.isdigit() or int(text) > 65535:
        raise CannotListen(address, "it has not the form host:port")
    bare = host.strip("[]")
    try:
        family, _, _, _, target = socket.getaddrinfo(bare, int(text), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(target)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PortInUse(address) from None
        raise CannotListen(address, error.strerror or "unknown") from None
    return host, int(text)


def _reflection_services() -> "list[AnyService]":
    from grpc_reflection.v1alpha import reflection_pb2

    return [reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]]
