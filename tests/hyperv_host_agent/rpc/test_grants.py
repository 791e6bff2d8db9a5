"""What a caller of the replication server may do, tried with a client of the test's own."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hyperv_host_agent import wire
from hyperv_host_agent.membership import Membership
from hyperv_host_agent.peer import Peer
from hyperv_host_agent.replication.cycle import CycleHeader, DiskGeometry, Kind
from hyperv_host_agent.replication.sending import CommitAcked
from hyperv_host_agent.rpc import Replication
from tests.fakes.host_provider import HostProvider, grant, host_agent, host_provider
from tests.fakes.pki import TestVault
from twinsite import keys
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.clock import MovedClock, SystemClock
from twinsite.credentials import Credentials
from twinsite.errors import Denied, InvalidInput, Precondition, TwinsiteError, Unauthenticated, Unreachable
from twinsite.extents import CLUSTER, Run

DISK = types_pb2.Disk(id="disk-1", name="vda", size_bytes=16 * CLUSTER)
MACHINE = types_pb2.Machine(id="vm-1", name="web01", cpus=1, memory_bytes=1 << 30, disks=[DISK])


class Source:
    """A host of the vault that speaks the protocol by hand."""

    def __init__(
        self, provider: HostProvider, target: str, address: str, credentials: Credentials, store: Path
    ) -> None:
        self.provider, self.target, self.store = provider, target, store
        self.me = Membership(store, credentials, SystemClock())
        self.peer = Peer(self.me, target, address, SystemClock())

    def grant(self, **changes: object) -> types_pb2.SignedDocument:
        fields = {"source": self.me.identity.id, "target": self.target} | changes
        return grant(self.provider.vault, MACHINE, str(fields.pop("source")), str(fields.pop("target")), **fields)

    def header(self, **changes: object) -> CycleHeader:
        fields = {
            "vm_id": MACHINE.id,
            "id": os.urandom(16),
            "number": 1,
            "parent": 0,
            "term": 1,
            "kind": Kind.INITIAL,
            "instant": 1.0,
            "consistency": "none",
            "disks": (DiskGeometry(DISK.id, DISK.size_bytes, "vda"),),
            "machine": MACHINE.SerializeToString(),
        }
        return CycleHeader(**fields | changes)  # type: ignore[arg-type]

    async def copy(self, header: CycleHeader, document: types_pb2.SignedDocument, *messages: bytes) -> CommitAcked:
        """A whole cycle; raises what the target refuses with."""
        sending = await self.peer.send(1, header, 0, document)
        try:
            digest = bytes(16)
            for message in messages:
                digest = wire.chain(digest, message)
                await sending.write(message)
            await sending.write(wire.encode(wire.end(len(messages), digest)))
            async for ack in sending.acks():
                if isinstance(ack, CommitAcked):
                    return ack
            raise AssertionError
        finally:
            sending.cancel()

    def written(self) -> list[str]:
        """What lies in the replica's folder beside what PrepareReplica made."""
        folder = self.store / MACHINE.id
        return (
            sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            if folder.exists()
            else []
        )


def batch(sequence: int = 1, *, start: int = 0, count: int = 16) -> bytes:
    """Zeros."""
    return wire.encode(wire.batch_header(sequence, 0, clusters=(), lengths=(), prints=b"", zeros=[Run(start, count)]))


@contextlib.asynccontextmanager
async def target(tmp_path: Path, *, prepare: bool = True) -> AsyncIterator[Source]:
    async with host_provider(TestVault()) as provider, host_agent(provider, tmp_path / "b1") as agent:
        if prepare:
            order = commands_pb2.PrepareReplica(machine=MACHINE, term=1)
            assert (await provider.order(agent.host_id, "p@1", prepare_replica=order)).ok
        meta = {"signing_key_id": provider.vault.signer.key_id, "signing_key": provider.vault.signer.public.hex()}
        store = tmp_path / "b1" / "store"
        source = Source(provider, agent.host_id, agent.address, provider.vault.host(meta=meta), store)
        try:
            yield source
        finally:
            await source.peer.close()


async def test_a_genuine_grant_lets_a_cycle_through(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        state = await source.peer.ask(source.grant(), MACHINE)
        assert (state.term, state.committed, state.unfinished) == (1, None, None)
        header = source.header()
        acked = await source.copy(header, source.grant(), batch())
        assert (acked.committed.number, acked.committed.id) == (1, header.id)
        state = await source.peer.ask(source.grant(), MACHINE)
        assert state.committed == acked.committed


WRONG = {
    "signed by another vault": {"signer": TestVault().signer},
    "of another vault": {"vault": "v-0000000000000000"},
    "for another source": {"source": "h-000000000000"},
    "for another target": {"target": "h-000000000000"},
    "expired": {"seconds": -1000.0},
    "for Kerberos": {"mode": "kerberos"},
}


@pytest.mark.parametrize("changes", WRONG.values(), ids=WRONG.keys())
async def test_a_grant_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    async with target(tmp_path) as source:
        before = source.written()
        with pytest.raises(Denied) as asked:
            await source.peer.ask(source.grant(**changes), MACHINE)
        assert asked.value.code == "GRANT_REFUSED"
        with pytest.raises(Denied) as sent:
            await source.copy(source.header(), source.grant(**changes), batch())
        assert sent.value.code == "GRANT_REFUSED"
        assert source.written() == before


async def test_a_grant_of_another_vm_or_with_smaller_disks_is_refused(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        before = source.written()
        with pytest.raises(InvalidInput, match="another VM"):
            await source.copy(source.header(), source.grant(vm_id="vm-2"), batch())
        small = source.grant(disks=((DISK.id, DISK.size_bytes - 512),))
        with pytest.raises(Denied, match="granted") as refused:
            await source.copy(source.header(), small, batch())
        assert refused.value.code == "NOT_GRANTED"
        with pytest.raises(Denied, match="not in it"):
            await source.copy(source.header(), source.grant(disks=(("disk-2", 1 << 40),)), batch())
        assert source.written() == before


async def test_an_older_term_is_refused_with_the_newer_one_and_a_newer_is_kept(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        newer = source.header(term=5)
        await source.copy(newer, source.grant(term=5), batch())
        assert (await source.peer.ask(source.grant(term=1), MACHINE)).term == 5
        older = source.header(term=4, number=2, parent=1, parent_id=newer.id, kind=Kind.DELTA, consistency="crash")
        with pytest.raises(Precondition, match="term 5") as refused:
            await source.copy(older, source.grant(term=4), batch())
        assert refused.value.code == "OLDER_TERM"


async def test_a_cycle_of_another_term_than_its_grant_is_refused(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        with pytest.raises(Denied):
            await source.copy(source.header(term=2), source.grant(term=1), batch())
        assert (await source.peer.ask(source.grant(), MACHINE)).term == 1


async def test_a_host_without_a_replica_of_the_vm_says_so(tmp_path: Path) -> None:
    async with target(tmp_path, prepare=False) as source:
        with pytest.raises(Precondition) as refused:
            await source.peer.ask(source.grant(), MACHINE)
        assert refused.value.code == "NOT_TARGET"
        assert not source.written()


BAD = {
    "beyond the disk": batch(start=10, count=7),
    "out of order": batch(2),
    "a zero run without end": batch(count=(1 << 63) - 1),
    "not a frame": b"\xff\xff\xff\x7f",
    "a short message": b"\x01",
    "another begin": wire.encode(wire.pb.FrameHeader(begin=wire.pb.Begin(cycle=1))),
    "descriptors that do not agree": wire.encode(
        wire.batch_header(1, 0, clusters=[0], lengths=[], prints=b"", zeros=[])
    ),
    "a frame that is none": wire.encode(
        wire.batch_header(1, 0, clusters=[0], lengths=[100], prints=bytes(16), zeros=[]), [bytes(100)]
    ),
    "less payload than lengths": wire.encode(
        wire.batch_header(1, 0, clusters=[0], lengths=[100], prints=bytes(16), zeros=[]), [bytes(99)]
    ),
}


@pytest.mark.parametrize("message", BAD.values(), ids=BAD.keys())
async def test_a_frame_that_breaks_the_rules_ends_the_cycle_and_the_next_one_is_welcome(
    tmp_path: Path, message: bytes
) -> None:
    async with target(tmp_path) as source:
        with pytest.raises(InvalidInput):
            await source.copy(source.header(), source.grant(), message)
        assert (await source.peer.ask(source.grant(), MACHINE)).committed is None
        await source.copy(source.header(), source.grant(), batch())


async def test_content_that_changed_on_the_way_is_not_committed(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        sending = await source.peer.send(1, source.header(), 0, source.grant())
        await sending.write(batch())
        await sending.write(wire.encode(wire.end(1, bytes(16))))
        with pytest.raises(TwinsiteError) as refused:
            async for _ in sending.acks():
                pass
        assert refused.value.code == "DAMAGED"
        assert (await source.peer.ask(source.grant(), MACHINE)).committed is None


async def test_whoever_is_no_host_of_this_vault_gets_nowhere(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        vault = source.provider.vault
        address = source.peer._address

        async def attempt(credentials: Credentials) -> None:
            peer = Peer(Membership(tmp_path, credentials, SystemClock()), source.target, address, SystemClock())
            try:
                await peer.ask(source.grant(source=credentials.identity.id), MACHINE)
            finally:
                await peer.close()

        with pytest.raises(Denied):
            await attempt(vault.server())
        with pytest.raises(Denied):
            await attempt(vault.user())
        with pytest.raises(Unreachable):
            await attempt(TestVault(vault.vault).host())
        expired = vault.host(ends=-1.0)
        with pytest.raises((Unreachable, Unauthenticated)):
            await attempt(expired)


async def test_a_valid_certificate_of_another_host_is_not_the_target(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        peer = Peer(source.me, keys.new_id("h"), source.peer._address, SystemClock())
        try:
            with pytest.raises(Unreachable) as refused:
                await peer.ask(source.grant(), MACHINE)
            assert refused.value.code == "NOT_THE_PEER"
        finally:
            await peer.close()


async def test_a_target_that_goes_silent_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with target(tmp_path) as source:
        clock = MovedClock()
        source.peer = Peer(source.me, source.target, source.peer._address, clock)
        monkeypatch.setattr(Replication, "send", _listen)
        sending = await source.peer.send(1, source.header(), 0, source.grant())
        await sending.write(batch(), 1)
        watching = asyncio.ensure_future(sending.watch())
        while not watching.done():
            await asyncio.sleep(0)
            clock.advance(10)
            assert clock.monotonic() < 1_800_000_000 + 400
        with pytest.raises(Unreachable) as given_up:
            await watching
        assert given_up.value.code == "STALLED"
        sending.cancel()


async def _listen(_self: Replication, _requests: object, context: object) -> None:
    """Takes everything and answers nothing."""
    while isinstance(await context.read(), bytes):  # type: ignore[attr-defined]
        pass
