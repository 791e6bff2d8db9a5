"""The replicas this host holds, opened once each, with one caller at a time."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from hyperv_host_agent import blocking
from hyperv_host_agent.store.base import Replica, ReplicaStore
from twinsite.errors import NotFound

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


class Held:
    """One VM's replica. The store's calls block, so `run` takes them to a thread, one after the other."""

    def __init__(self, vm_id: str, replica: Replica) -> None:
        self.vm_id = vm_id
        self.replica = replica
        self._turn = asyncio.Lock()
        self._maintaining = asyncio.Lock()

    async def run(self, call: Callable[Arguments, Answer], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        """`call` in a thread, after those before it."""
        async with self._turn:
            return await blocking.finish(call, *args, **kwargs)

    async def beside(
        self, call: Callable[Arguments, Answer], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Answer:
        """For the one call that may run while a cycle is received: `maintain`."""
        async with self._maintaining:
            return await blocking.finish(call, *args, **kwargs)

    async def aside(
        self, call: Callable[Arguments, Answer], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Answer:
        """For calls that may run beside everything: `check` and its steps, `scrub`, `scrubbed`."""
        return await blocking.finish(call, *args, **kwargs)

    async def close(self) -> None:
        await self.run(self.replica.close)  # which also ends a `maintain` that runs


class Replicas:
    def __init__(self, store: ReplicaStore) -> None:
        self.store = store
        self._held: dict[str, Held] = {}
        self._opening = asyncio.Lock()

    async def get(self, vm_id: str) -> Held:
        """Raises NotFound, StoreDamaged."""
        async with self._opening:
            if vm_id not in self._held:
                self._held[vm_id] = Held(vm_id, await asyncio.to_thread(self.store.open, vm_id))
            return self._held[vm_id]

    async def find(self, vm_id: str) -> Held | None:
        try:
            return await self.get(vm_id)
        except NotFound:
            return None

    async def create(self, vm_id: str, *, term: int) -> Held:
        """The VM's replica, made if need be. Raises NoSpace."""
        async with self._opening:
            if vm_id not in self._held:
                self._held[vm_id] = Held(vm_id, await asyncio.to_thread(self.store.create, vm_id, term=term))
            return self._held[vm_id]

    async def remove(self, vm_id: str) -> None:
        """Repeatable. Raises PointPinned."""
        async with self._opening:
            held = self._held.get(vm_id)
            if held is not None:
                await held.close()
                del self._held[vm_id]
            await asyncio.to_thread(self.store.remove, vm_id)

    async def ids(self) -> list[str]:
        return await asyncio.to_thread(self.store.replicas)

    async def close(self) -> None:
        for held in self._held.values():
            await held.close()
        self._held.clear()
