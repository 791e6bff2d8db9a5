"""A TCP relay between two programs: counts what passes, and cuts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable


class WireTap:
    def __init__(self, upstream: str) -> None:
        host, _, port = upstream.rpartition(":")
        self._upstream = host, int(port)
        self._live: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self.address = ""
        self.sent = 0  # bytes from whoever connects
        self.received = 0  # and to it
        self.open = True  # False: connections are refused at once
        self.on_bytes: Callable[[], None] = lambda: None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        for writer in self._live:
            writer.transport.abort()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            if self.open:
                other, upstream = await asyncio.open_connection(*self._upstream)
                self._live |= {writer, upstream}
                await asyncio.gather(self._pump(reader, upstream, count=True), self._pump(other, writer, count=False))
                self._live -= {writer, upstream}
        writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, count: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if count:
                    self.sent += len(data)
                else:
                    self.received += len(data)
                self.on_bytes()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()


@contextlib.asynccontextmanager
async def wire_tap(upstream: str) -> AsyncIterator[WireTap]:
    tap = WireTap(upstream)
    await tap.start()
    try:
        yield tap
    finally:
        await tap.stop()
