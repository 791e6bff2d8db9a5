"""A source that speaks the replication protocol by hand, and the target it speaks to."""

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from hyperv_host_agent import wire
from hyperv_host_agent.app import Agent
from hyperv_host_agent.membership import Membership
from hyperv_host_agent.peer import Peer
from hyperv_host_agent.replication.cycle import CycleHeader, DiskGeometry, Kind
from hyperv_host_agent.replication.sending import CommitAcked
from hyperv_host_agent.settings import TransferSettings
from hyperv_host_agent.store.base import ReplicaStore
from tests.fakes.host_provider import HostProvider, grant, host_agent, host_provider
from tests.fakes.pki import TestVault
from tests.fakes.replicated_machine import frame_of
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.clock import SystemClock
from twinsite.credentials import Credentials
from twinsite.digest import fingerprint
from twinsite.extents import CLUSTER, Run

DISK = types_pb2.Disk(id="disk-1", name="vda", size_bytes=16 * CLUSTER)
MACHINE = types_pb2.Machine(id="vm-1", name="web01", cpus=1, memory_bytes=1 << 30, disks=[DISK])


class Source:
    """A host of the vault that speaks the protocol by hand."""

    def __init__(
        self,
        provider: HostProvider,
        target: str,
        address: str,
        credentials: Credentials,
        store: Path,
        machine: types_pb2.Machine,
    ) -> None:
        self.machine = machine
        self.agent: Agent  # at the target
        self.provider, self.target, self.store = provider, target, store
        self.me = Membership(store, credentials, SystemClock())
        self.peer = Peer(self.me, target, address, SystemClock())

    def grant(self, **changes: object) -> types_pb2.SignedDocument:
        fields = {"source": self.me.identity.id, "target": self.target} | changes
        return grant(self.provider.vault, self.machine, str(fields.pop("source")), str(fields.pop("target")), **fields)

    def header(self, **changes: object) -> CycleHeader:
        fields = {
            "vm_id": self.machine.id,
            "id": os.urandom(16),
            "number": 1,
            "parent": 0,
            "term": 1,
            "kind": Kind.INITIAL,
            "instant": 1.0,
            "consistency": "none",
            "disks": tuple(DiskGeometry(disk.id, disk.size_bytes, disk.name) for disk in self.machine.disks),
            "machine": self.machine.SerializeToString(),
        }
        return CycleHeader(**fields | changes)  # type: ignore[arg-type]

    async def copy(self, header: CycleHeader, document: types_pb2.SignedDocument, *messages: bytes) -> CommitAcked:
        """A whole cycle; raises what the target refuses with."""
        sending = await self.peer.send(1, header, 0, document)
        try:
            digest = bytes(16)
            for number, message in enumerate(messages, 1):
                digest = wire.chain(digest, message)
                await sending.write(message, number)
            await sending.write(wire.encode(wire.end(len(messages), digest)))
            async for ack in sending.acks():
                if isinstance(ack, CommitAcked):
                    return ack
            raise AssertionError
        finally:
            sending.cancel()

    def written(self) -> list[str]:
        """What lies in the replica's folder beside what PrepareReplica made."""
        folder = self.store / self.machine.id
        return (
            sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            if folder.exists()
            else []
        )


def zeros(sequence: int = 1, *, start: int = 0, count: int = 16) -> bytes:
    """A batch of them."""
    return wire.encode(wire.batch_header(sequence, 0, clusters=(), lengths=(), prints=b"", zeros=[Run(start, count)]))


def data(clusters: Sequence[int], contents: Sequence[bytes], *, sequence: int = 1, disk: int = 0) -> bytes:
    """A batch of these clusters."""
    frames = [frame_of(content) for content in contents]
    prints = b"".join(map(fingerprint, contents))
    lengths = [len(frame) for frame in frames]
    return wire.encode(
        wire.batch_header(sequence, disk, clusters=clusters, lengths=lengths, prints=prints, zeros=()), frames
    )


@contextlib.asynccontextmanager
async def target(
    tmp_path: Path,
    *,
    prepare: bool = True,
    store: ReplicaStore | None = None,
    machine: types_pb2.Machine = MACHINE,
    transfer: TransferSettings | None = None,
) -> AsyncIterator[Source]:
    async with (
        host_provider(TestVault()) as provider,
        host_agent(provider, tmp_path / "b1", store=store, transfer=transfer) as agent,
    ):
        if prepare:
            order = commands_pb2.PrepareReplica(machine=machine, term=1)
            assert (await provider.order(agent.host_id, "p@1", prepare_replica=order)).ok
        meta = {"signing_key_id": provider.vault.signer.key_id, "signing_key": provider.vault.signer.public.hex()}
        folder = tmp_path / "b1" / "store"
        source = Source(provider, agent.host_id, agent.address, provider.vault.host(meta=meta), folder, machine)
        source.agent = agent
        try:
            yield source
        finally:
            await source.peer.close()
