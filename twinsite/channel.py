"""Dialling: channels whose calls raise typed errors and, if unary, never wait for ever."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from types import TracebackType
from typing import Any, Final, Self

import grpc

from twinsite.clock import SystemClock
from twinsite.errors import TwinsiteError, Unreachable
from twinsite.server import CONTROL, Limits
from twinsite.status import from_rpc

DEADLINE: Final = 30.0  # seconds for a unary call that names none
_WRITE_FAILED: Final = "Internal error from Core"
_STATUS_TRIES: Final = 100
_STATUS_WAIT: Final = 0.01  # seconds
_CLOCK: Final = SystemClock()
_UNTRUSTED: Final = ("CERTIFICATE_VERIFY_FAILED", "Hostname Verification", "hostname verification")


class NotThePeer(Unreachable):
    public = "who answers at {error.address} is not {error.peer}"
    cause = "its certificate is of another vault, of another member, or expired"
    still_works = "nothing was sent to it"
    next_step = "check the address, and the clocks of both machines"

    def __init__(self, address: str, peer: str) -> None:
        self.address, self.peer = address, peer


def dial(
    address: str,
    credentials: grpc.ChannelCredentials,
    *,
    peer: str,
    proxy: str | None = None,
    limits: Limits = CONTROL,
    deadline: float = DEADLINE,
    metadata: Sequence[tuple[str, str]] = (),
    bearer: Callable[[], str] | None = None,
) -> "Channel":
    """A channel to exactly one member. Nothing is sent before the first call.

    `peer` is the DNS name its certificate must have (`Identity.dns`), whatever the address; `proxy` an
    http://host:port for CONNECT; `deadline` the seconds of a unary call that names none; `metadata` goes with each
    call; `bearer` gives the token that each call carries, asked anew each time.
    """
    options: list[tuple[str, Any]] = [
        ("grpc.ssl_target_name_override", peer),
        # The environment's proxy is for the web, not for us.
        *([("grpc.http_proxy", proxy)] if proxy else [("grpc.enable_http_proxy", 0)]),
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.keepalive_time_ms", limits.ping_every * 1000),
        ("grpc.keepalive_timeout_ms", limits.ping_within * 1000),
        ("grpc.http2.ping_timeout_ms", limits.ping_within * 1000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection: that is how renewals take effect
        # A peer that was restarted is found again within seconds; callers have their own back-off above this one.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
    ]
    inner = grpc.aio.secure_channel(address, credentials, options=options)
    return Channel(inner, address, peer, deadline=deadline, metadata=metadata, bearer=bearer)


class Channel(grpc.aio.Channel):
    """A gRPC channel to hand to a stub."""

    def __init__(
        self,
        inner: grpc.aio.Channel,
        address: str,
        peer: str,
        *,
        deadline: float,
        metadata: Sequence[tuple[str, str]],
        bearer: Callable[[], str] | None,
    ) -> None:
        self._inner, self._address, self._peer = inner, address, peer
        self._deadline, self._metadata, self._bearer = deadline, tuple(metadata), bearer

    def typed(self, error: grpc.RpcError) -> TwinsiteError:
        if isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNAVAILABLE:
            details = error.details() or ""
            if any(mark in details for mark in _UNTRUSTED):
                return NotThePeer(self._address, self._peer)
        return from_rpc(error)

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._multicallable(self._inner.unary_unary(*args, **kwargs), self._deadline)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return self._multicallable(self._inner.stream_unary(*args, **kwargs), None)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._multicallable(self._inner.unary_stream(*args, **kwargs), None)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return self._multicallable(self._inner.stream_stream(*args, **kwargs), None)

    def _multicallable(self, inner: Any, deadline: float | None) -> Any:
        def call(*args: Any, timeout: float | None = deadline, metadata: Any = (), **kwargs: Any) -> Call:
            entries = (*self._metadata, *(metadata or ()))
            if self._bearer is not None:
                entries += (("authorization", f"Bearer {self._bearer()}"),)
            return Call(inner(*args, timeout=timeout, metadata=entries, **kwargs), self.typed)

        return call

    async def close(self, grace: float | None = None) -> None:
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._inner.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._inner.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._inner.channel_ready()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Call:
    """A running call of any of the four shapes. Reading, writing and awaiting raise TwinsiteError."""

    def __init__(self, inner: Any, typed: Callable[[grpc.RpcError], TwinsiteError]) -> None:
        self._inner, self._typed = inner, typed
        self._ended: grpc.aio.AioRpcError | None = None
        self._writing = asyncio.Lock()  # gRPC ends a call on which two tasks write at once
        inner.add_done_callback(self._remember)

    def __await__(self) -> Generator[Any, None, Any]:
        return self._result().__await__()

    async def _result(self) -> Any:
        async with self._typing():
            return await self._inner

    async def __aiter__(self) -> AsyncIterator[Any]:
        async with self._typing():
            async for message in self._inner:
                yield message

    async def read(self) -> Any:
        """The next message, or grpc.aio.EOF."""
        async with self._typing():
            return await self._inner.read()

    async def write(self, message: Any) -> None:
        async with self._writing, self._typing():
            await self._inner.write(message)

    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return bool(self._inner.done())

    async def done_writing(self) -> None:
        async with self._writing, self._typing():
            await self._inner.done_writing()

    @contextlib.asynccontextmanager
    async def _typing(self) -> AsyncIterator[None]:
        try:
            yield
        except asyncio.InvalidStateError:  # it has ended before this write; its status says why
            raise self._typed(await self._status()) from None
        except grpc.aio.AioRpcError as error:
            guessed = error.code() is grpc.StatusCode.INTERNAL and error.details() == _WRITE_FAILED
            raise self._typed(await self._status() if guessed else error) from None
        except grpc.RpcError as error:
            raise self._typed(error) from None

    def _remember(self, inner: Any) -> None:
        """Keep the status the peer sent. A write that meets the end of a call overwrites it, before or after, with an
        INTERNAL of gRPC's own (grpc/grpc#36066).
        """
        details = _at_once(inner.details())
        if self._ended is None and details not in (None, _WRITE_FAILED):
            code, trailing = _at_once(inner.code()), _at_once(inner.trailing_metadata())
            self._ended = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details)

    async def _status(self) -> grpc.aio.AioRpcError:
        for _ in range(_STATUS_TRIES):
            self._remember(self._inner)
            if self._ended is not None:
                return self._ended
            await _CLOCK.sleep(_STATUS_WAIT)
        return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, details=_WRITE_FAILED)  # no status came

    def cancel(self) -> bool:
        cancelled: bool = self._inner.cancel()
        return cancelled


def _at_once(answer: Coroutine[Any, Any, Any]) -> Any:
    """What an answer is that is known already: inside a callback nothing can be awaited."""
    try:
        answer.send(None)
    except StopIteration as done:
        return done.value
    answer.close()
    return None
