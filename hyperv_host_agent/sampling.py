"""Keeps the statistics of this host's replications, and sends them until they are stored."""

import asyncio
import secrets
from collections.abc import Callable
from typing import Final, TypeVar

import structlog

from hyperv_host_agent import blocking
from hyperv_host_agent.replication.progress import View
from hyperv_host_agent.sample_store import SampleStore, SamplesUnwritable
from hyperv_host_agent.samples import Recorder
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import Clock

_log = structlog.get_logger()
TICK_SECONDS: Final = 5.0  # a kill costs at most so much of the open minute
BATCH_SAMPLES: Final = 500
BATCH_BYTES: Final = 512 * 1024

Answer = TypeVar("Answer")


class Sampling:
    """Tell it what replications do; it needs nobody to go on and stops nobody."""

    def __init__(self, store: SampleStore, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._recorder = Recorder()
        self._open = 0  # the minute that was open when it was written last: what is stored of it is not all
        self._using = asyncio.Lock()
        self._sealed = asyncio.Event()  # there may be samples to send
        self._acked = asyncio.Event()
        self._sent: pb.SampleBatch | None = None  # and not deleted here
        self._stored = False  # the coordinator has it
        self._trouble = ""  # said already

    def watch(self, vm_id: str) -> None:
        """It is replicated from here, from now on."""
        self._recorder.watch(vm_id)

    def forget(self, vm_id: str) -> None:
        self._recorder.forget(vm_id)

    def view(self, vm_id: str, view: View) -> None:
        self._recorder.view(vm_id, view, self._clock.now())

    async def load(self) -> None:
        """The minute an earlier process left open; before the first view."""
        await self._roll()
        self._open = self._recorder.minute

    async def run(self) -> None:
        """Writes what was recorded every few seconds; ends only when it is cancelled, with everything written."""
        self._sealed.set()
        try:
            while True:
                await self._clock.sleep(TICK_SECONDS)
                await self._roll()
                await self._flush()
        finally:
            await self._flush()
            self._store.close()

    async def session(self, send: Callable[[pb.SampleBatch], None]) -> None:
        """Beside a session with the provider, for ever: one batch at a time, the next one when it is stored."""
        while True:
            batch = self._sent or await self._next()
            if batch is None:
                await self._sealed.wait()
                self._sealed.clear()
                continue
            self._sent = batch
            self._acked.clear()
            send(batch)
            await self._acked.wait()

    async def stored(self, batch_id: int) -> None:
        """The coordinator has the batch; it is deleted here."""
        batch = self._sent
        if batch is None or batch.id != batch_id:
            return
        self._stored = True
        await self._drop()

    async def _drop(self) -> None:
        """What is stored there; tried again later when it cannot be deleted now, and only then the next is sent."""
        if self._sent is None or not self._stored:
            return
        if await self._use(self._store.remove, self._sent.samples) is not None:
            self._sent, self._stored = None, False
            self._acked.set()

    async def _next(self) -> pb.SampleBatch | None:
        found = await self._use(self._oldest)
        return pb.SampleBatch(id=secrets.randbits(63), samples=found) if found else None

    def _oldest(self) -> list[types_pb2.Sample]:
        return self._store.oldest(BATCH_SAMPLES, BATCH_BYTES, but=(self._open, self._recorder.minute))

    async def _roll(self) -> None:
        self._recorder.roll(self._clock.now())
        if self._recorder.reopened:
            self._recorder.restore(await self._use(self._store.minute, self._recorder.minute) or ())

    async def _flush(self) -> None:
        samples, minute = self._recorder.unsaved(self._clock.now()), self._recorder.minute
        if not samples or await self._use(self._written, samples) is not None:
            self._recorder.saved(samples)
            self._open = minute
            self._sealed.set()
            await self._drop()

    def _written(self, samples: list[types_pb2.Sample]) -> int:
        self._store.write(samples)
        return self._store.trim(self._clock.now())

    async def _use(self, call: Callable[..., Answer], *arguments: object) -> Answer | None:
        """In a thread, one call after the other; None when the store cannot be used now."""
        async with self._using:
            try:
                answer = await blocking.finish(call, *arguments)
            except SamplesUnwritable as error:
                if self._trouble != str(error):
                    self._trouble = str(error)
                    _log.warning("statistics_unwritable", reason=self._trouble)
                return None
        if self._trouble:
            self._trouble = ""
            _log.info("statistics_writable_again")
        return answer
