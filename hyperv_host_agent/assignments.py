"""What this host has to do, as the provider said it last; kept here, so that replication needs nobody to go on."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import structlog
from google.protobuf.message import DecodeError

from twinsite import async_files
from twinsite.api.types.v1 import types_pb2

_log = structlog.get_logger()
FILE: Final = "assignments.pb"
ByVm = dict[str, types_pb2.Assignment]


class Assignments:
    """`apply` is told every change, also those that did not come in the present session."""

    def __init__(
        self, folder: Path, *, apply: Callable[[ByVm], Awaitable[None]], on_held: Callable[[int], None]
    ) -> None:
        self._path = folder / FILE
        self._apply = apply
        self._on_held = on_held
        self._held = types_pb2.Assignments()
        self._welcomed = self._told = False  # in this session: the provider's are current; they have arrived
        self.confirmed = asyncio.Event()  # set while both are true: who owns a VM is known for certain

    async def load(self) -> None:
        """From the last session, before there is one."""
        try:
            self._held = types_pb2.Assignments.FromString(self._path.read_bytes())
        except FileNotFoundError:
            return
        except DecodeError:
            # The provider sends them whole at the next session; until then nothing is sent, and nothing is lost.
            _log.error("assignments_unreadable", path=str(self._path))
            return
        self._on_held(self._held.version)
        await self._apply(self._by_vm())

    async def replace(self, snapshot: types_pb2.Assignments) -> None:
        """Durable before it is acted on."""
        if snapshot != self._held:
            await async_files.replace(self._path, snapshot.SerializeToString(deterministic=True))
            self._held = snapshot
            _log.info("assignments_received", version=snapshot.version, count=len(snapshot.assignments))
        self._on_held(snapshot.version)
        await self._apply(self._by_vm())
        self._told = True
        self._decide()

    def welcome(self, *, current: bool) -> None:
        self._welcomed = current
        self._decide()

    def session_lost(self) -> None:
        self._welcomed = self._told = False
        self._decide()

    def of(self, vm_id: str) -> types_pb2.Assignment | None:
        return self._by_vm().get(vm_id)

    def _by_vm(self) -> ByVm:
        return {assignment.vm_id: assignment for assignment in self._held.assignments}

    def _decide(self) -> None:
        if self._welcomed and self._told:
            self.confirmed.set()
        else:
            self.confirmed.clear()
