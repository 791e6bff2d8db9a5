"""The VMs this host replicates to other hosts: one transfer each, as the assignments say."""

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from hyperv_host_agent import blocking, wire
from hyperv_host_agent.assignments import Assignments, ByVm
from hyperv_host_agent.changes.fingerprints import FingerprintIndex
from hyperv_host_agent.hypervisors.base import Hypervisor, MachineMissing, Power
from hyperv_host_agent.hypervisors.description import to_proto
from hyperv_host_agent.membership import Membership
from hyperv_host_agent.outbox import Outbox
from hyperv_host_agent.pacing import Pacer, Pacing
from hyperv_host_agent.peer import Peer
from hyperv_host_agent.pending import Pending
from hyperv_host_agent.reading import Compressors, Reader
from hyperv_host_agent.replication.progress import Phase, View
from hyperv_host_agent.replication.schedule import Timing
from hyperv_host_agent.replication.sending import Assigned
from hyperv_host_agent.sampling import Sampling
from hyperv_host_agent.settings import TransferSettings
from hyperv_host_agent.spool import Memory
from hyperv_host_agent.store.rules import check_id
from hyperv_host_agent.transfer import Means, Order, Seen, Transfer
from hyperv_host_agent.turns import Turns
from twinsite import files, status
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import Clock
from twinsite.errors import Internal, TwinsiteError

_log = structlog.get_logger()
_RETRY_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 2.0  # between two looks at how much is dirty
_STATES: Final = {
    Phase.WAITING: types_pb2.REPLICATION_STATE_WAITING,
    Phase.INITIAL: types_pb2.REPLICATION_STATE_INITIAL,
    Phase.REPLICATING: types_pb2.REPLICATION_STATE_REPLICATING,
    Phase.RESYNCHRONIZING: types_pb2.REPLICATION_STATE_RESYNCHRONIZING,
    Phase.PAUSED: types_pb2.REPLICATION_STATE_PAUSED,
    Phase.BLOCKED: types_pb2.REPLICATION_STATE_BLOCKED,
    Phase.FENCED: types_pb2.REPLICATION_STATE_FENCED,
}


@dataclass(slots=True)
class _Source:
    assignment: types_pb2.Assignment
    task: asyncio.Task[None]
    transfer: Transfer | None = None


@dataclass(frozen=True, slots=True)
class Ongoing:
    """A replication that runs, for who reads the VM's disks beside it."""

    reader: Reader
    seen: Seen
    vm_name: str
    target_host: str


class Sources:
    """`group` owns the transfers' tasks."""

    def __init__(
        self,
        folder: Path,
        *,
        hypervisor: Hypervisor,
        membership: Membership,
        outbox: Outbox,
        sampling: Sampling,
        settings: TransferSettings,
        clock: Clock,
        group: asyncio.TaskGroup,
    ) -> None:
        self._folder = files.private_directory(folder)
        self._spool_folder = folder.parent / "spool"
        self._hypervisor = hypervisor
        self._membership = membership
        self._outbox = outbox
        self._sampling = sampling
        self._clock = clock
        self._group = group
        self._compressors = Compressors(settings.compressors)
        self._pacing = Pacing([rate.rule() for rate in settings.rates], clock)
        self._turns = Turns(cycles=settings.concurrency, copies=settings.copies, clock=clock)
        self._spool_memory = Memory(settings.spool_memory_bytes)
        self._running: dict[str, _Source] = {}
        self._changing = asyncio.Lock()

    async def apply(self, assignments: ByVm) -> None:
        """Make what runs be what is assigned; repeatable."""
        wanted = {
            vm_id: assignment for vm_id, assignment in assignments.items() if assignment.role == types_pb2.ROLE_SOURCE
        }
        async with self._changing:
            for vm_id in set(self._running) - set(wanted):
                await self._stop(vm_id)
                self._outbox.forget(vm_id)
                self._sampling.forget(vm_id)
            for vm_id, assignment in wanted.items():
                await self._assign(vm_id, assignment)

    async def forget(self, vm_id: str) -> None:
        """Stop tracking the VM and delete what is kept of its replication; the VM stays as it is. Repeatable."""
        async with self._changing:
            await self._stop(vm_id)
            folder = self._folder / check_id("VM", vm_id)
            await blocking.finish(self._forget, vm_id, folder)
        self._outbox.forget(vm_id)

    async def take_turns(self) -> None:
        """Learns how many cycles at a time are best. Runs for ever."""
        await self._turns.run()

    def assigned(self, vm_id: str) -> bool:
        """Whether the VM is to be replicated from here."""
        source = self._running.get(vm_id)
        return source is not None and not source.assignment.fenced

    def ongoing(self, vm_id: str) -> Ongoing | None:
        """None: it does not run now; it may in a moment."""
        source = self._running.get(vm_id)
        if source is None or source.transfer is None or source.task.done():
            return None
        assignment = source.assignment
        return Ongoing(source.transfer.reader, source.transfer.seen, assignment.vm_name, assignment.peer_host_id)

    def state_folder(self, vm_id: str) -> Path:
        """What is kept of the VM's replication; removed when it is forgotten."""
        return self._folder / check_id("VM", vm_id)

    @property
    def compressors(self) -> Compressors:
        return self._compressors

    async def power_on(self, assignments: Assignments) -> None:
        """After a restart of the host: starts the VMs it owns, once it is certain that it does. Runs for ever."""
        while True:
            await assignments.confirmed.wait()
            for vm_id, source in list(self._running.items()):
                if not source.assignment.fenced:
                    await self._power_on(vm_id)
            await self._clock.sleep(_RETRY_SECONDS)

    async def close(self) -> None:
        async with self._changing:
            for vm_id in list(self._running):
                await self._stop(vm_id)
        self._compressors.close()

    async def _assign(self, vm_id: str, assignment: types_pb2.Assignment) -> None:
        present = self._running.get(vm_id)
        if present is not None and present.assignment == assignment and not present.task.done():
            return
        if present is not None and present.transfer is not None and _same_way(present.assignment, assignment):
            present.assignment = assignment
            present.transfer.change(_order(assignment, self._clock))
            return
        await self._stop(vm_id)
        keep = self._fence(assignment) if assignment.fenced else self._replicate(assignment)
        self._running[vm_id] = _Source(assignment, self._group.create_task(keep))

    async def _stop(self, vm_id: str) -> None:
        source = self._running.pop(vm_id, None)
        if source is not None:
            source.task.cancel()
            await asyncio.wait([source.task])

    async def _fence(self, assignment: types_pb2.Assignment) -> None:
        """Another host owns the VM: it is stopped here and does not start again."""
        vm_id, term = assignment.vm_id, assignment.term
        self._sampling.forget(vm_id)
        self._report(vm_id, term, types_pb2.REPLICATION_STATE_FENCED)
        while True:
            try:
                await blocking.finish(self._hypervisor.fence, vm_id, term)
            except MachineMissing:
                return
            except TwinsiteError as error:
                _log.error("fence_failed", vm_id=vm_id, term=term, reason=str(error), cause=error.text("cause"))
                self._report(vm_id, term, types_pb2.REPLICATION_STATE_FENCED, error)
                await self._clock.sleep(_RETRY_SECONDS)
            else:
                _log.info("fenced", vm_id=vm_id, term=term)
                return

    async def _replicate(self, assignment: types_pb2.Assignment) -> None:
        """Until it is cancelled. A VM that cannot be opened is tried again; other VMs do not notice."""
        vm_id = assignment.vm_id
        self._sampling.watch(vm_id)
        self._report(vm_id, assignment.term, types_pb2.REPLICATION_STATE_WAITING)
        while True:
            try:
                reader = await blocking.finish(self._open, assignment)
            except TwinsiteError as error:
                problem = error
            except Exception:  # noqa: BLE001  # the top of a task; other VMs go on
                _log.exception("source_broke", vm_id=vm_id)
                problem = Internal()
            else:
                await self._transfer(assignment, reader)
                return
            self._report(vm_id, assignment.term, types_pb2.REPLICATION_STATE_BLOCKED, problem)
            await self._clock.sleep(_RETRY_SECONDS)

    async def _transfer(self, assignment: types_pb2.Assignment, reader: Reader) -> None:
        vm_id = assignment.vm_id
        pacer = self._pacing.pacer()
        shown = _Shown(self._outbox, vm_id, pacer)

        def told(view: View) -> None:
            shown.view(view)
            self._sampling.view(vm_id, view)

        means = Means(
            vm_id=vm_id,
            folder=self._folder / vm_id,
            reader=reader,
            peer=Peer(self._membership, assignment.peer_host_id, assignment.peer_address, self._clock),
            pacer=pacer,
            describe=lambda: to_proto(self._hypervisor.machine(vm_id)),
            turns=self._turns,
            spool_folder=self._spool_folder,
            spool_memory=self._spool_memory,
            clock=self._clock,
            on_view=told,
            on_failure=shown.failure,
        )
        source = self._running[vm_id]
        transfer = source.transfer = Transfer(means, _order(source.assignment, self._clock))
        looking = self._group.create_task(self._look(reader, transfer, shown))
        try:
            await transfer.run()
        finally:
            looking.cancel()
            await asyncio.wait([looking])

    async def _look(self, reader: Reader, transfer: Transfer, shown: "_Shown") -> None:
        while True:
            await self._clock.sleep(_LOOK_SECONDS)
            transfer.look()
            try:
                shown.pending(await reader.run(reader.source.dirty_bytes))
            except Exception:  # noqa: BLE001  # the top of a task, and the reader's thread may have ended just now
                _log.debug("dirty_bytes_unknown", exc_info=True)

    def _open(self, assignment: types_pb2.Assignment) -> Reader:
        folder = files.private_directory(self._folder / check_id("VM", assignment.vm_id))
        # A host that comes back after a disaster may not own the VM any more: it starts only when that is known.
        self._hypervisor.guard(assignment.vm_id)
        return Reader(
            self._hypervisor.change_source(assignment.vm_id),
            FingerprintIndex(folder / "fingerprints"),
            Pending(folder / "fingerprints"),
            self._compressors,
            compression=assignment.policy.compression,
        )

    def _forget(self, vm_id: str, folder: Path) -> None:
        try:
            self._hypervisor.change_source(vm_id).stop()
            self._hypervisor.unguard(vm_id)
        except MachineMissing:
            _log.info("forgotten_vm_is_gone", vm_id=vm_id)
        shutil.rmtree(folder, ignore_errors=True)

    async def _power_on(self, vm_id: str) -> None:
        try:
            state = await blocking.finish(self._hypervisor.machine, vm_id)
            if state.autostart and state.power is Power.STOPPED:
                await blocking.finish(self._hypervisor.start, vm_id)
                _log.info("started", vm_id=vm_id)
        except TwinsiteError as error:
            _log.warning("start_failed", vm_id=vm_id, reason=str(error), cause=error.text("cause"))

    def _report(
        self, vm_id: str, term: int, state: types_pb2.ReplicationState.ValueType, reason: TwinsiteError | None = None
    ) -> None:
        self._outbox.replication(
            types_pb2.ReplicationStatus(
                vm_id=vm_id,
                role=types_pb2.ROLE_SOURCE,
                state=state,
                reason=status.to_proto(reason) if reason is not None else None,
                term=term,
            )
        )


class _Shown:
    """The status of one transfer, from what it says and what its source says."""

    def __init__(self, outbox: Outbox, vm_id: str, pacer: Pacer) -> None:
        self._outbox = outbox
        self._pacer = pacer
        self._status = types_pb2.ReplicationStatus(vm_id=vm_id, role=types_pb2.ROLE_SOURCE)

    def view(self, view: View) -> None:
        fresh = types_pb2.ReplicationStatus(
            vm_id=self._status.vm_id,
            role=types_pb2.ROLE_SOURCE,
            state=_STATES[view.phase],
            reason=status.to_proto(view.reason) if view.reason is not None else None,
            committed_cycle=view.committed.number if view.committed is not None else 0,
            term=view.term,
            initial_done_bytes=view.copied_bytes,
            initial_total_bytes=view.copy_bytes,
            changed_bytes=view.totals.changed_bytes,
            wire_bytes=view.totals.wire_bytes,
            last_cycle_seconds=view.last_seconds,
            cycles=view.totals.cycles,
            pending_bytes=self._status.pending_bytes,
            last_causes=_causes(view.causes),
            late=view.late,
            note=view.note,
        )
        if view.instant:
            fresh.committed_instant.CopyFrom(wire.timestamp(view.instant))
        if view.totals.since:
            fresh.counted_since.CopyFrom(wire.timestamp(view.totals.since))
        self._show(fresh)

    def failure(self, error: TwinsiteError) -> None:
        fresh = types_pb2.ReplicationStatus()
        fresh.CopyFrom(self._status)
        fresh.state = types_pb2.REPLICATION_STATE_BLOCKED
        fresh.reason.CopyFrom(status.to_proto(error))
        self._show(fresh)

    def pending(self, count: int) -> None:
        fresh = types_pb2.ReplicationStatus()
        fresh.CopyFrom(self._status)
        fresh.pending_bytes = count
        self._show(fresh)

    def _show(self, fresh: types_pb2.ReplicationStatus) -> None:
        fresh.rate_bytes_per_second = self._pacer.rate
        self._status = fresh
        self._outbox.replication(fresh)


def _causes(timing: Timing) -> types_pb2.Causes:
    return types_pb2.Causes(
        source=timing.source,
        compress=timing.compress,
        network=timing.network,
        target=timing.target,
        cap=timing.cap,
        turn=timing.turn,
    )


def _same_way(before: types_pb2.Assignment, after: types_pb2.Assignment) -> bool:
    """Whether the transfer that runs can go on under the new assignment."""
    return not after.fenced and (before.peer_host_id, before.peer_address) == (after.peer_host_id, after.peer_address)


def _order(assignment: types_pb2.Assignment, clock: Clock) -> Order:
    policy, initial = assignment.policy, assignment.initial
    not_before = initial.start_at.ToNanoseconds() / 1e9 - clock.now() if initial.HasField("start_at") else 0.0
    return Order(
        Assigned(
            assignment.term,
            float(max(1, policy.frequency_seconds)),
            paused=assignment.paused,
            application_every=policy.application_hours * 3600.0,
            offline=initial.method == types_pb2.InitialReplication.METHOD_OFFLINE,
            not_before=clock.monotonic() + not_before if not_before > 0 else 0.0,
        ),
        assignment.grant,
        policy,
    )
