"""What a caller of the replication server may do, tried with a client of the test's own."""

import asyncio
import threading
from pathlib import Path

import pytest

from hyperv_host_agent import wire
from hyperv_host_agent.membership import Membership
from hyperv_host_agent.peer import Peer
from hyperv_host_agent.replication.cycle import Kind
from hyperv_host_agent.settings import TransferSettings
from tests.fakes.hand_source import DISK, MACHINE, target, zeros
from tests.fakes.pki import TestVault
from twinsite import keys
from twinsite.clock import MovedClock, SystemClock
from twinsite.credentials import Credentials
from twinsite.errors import Aborted, Denied, InvalidInput, Precondition, TwinsiteError, Unauthenticated, Unreachable


async def test_a_genuine_grant_lets_a_cycle_through(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        state = await source.peer.ask(source.grant(), MACHINE)
        assert (state.term, state.committed, state.unfinished) == (1, None, None)
        header = source.header()
        acked = await source.copy(header, source.grant(), zeros())
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
            await source.copy(source.header(), source.grant(**changes), zeros())
        assert sent.value.code == "GRANT_REFUSED"
        assert source.written() == before


async def test_a_grant_of_another_vm_or_with_smaller_disks_is_refused(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        before = source.written()
        with pytest.raises(InvalidInput, match="another VM"):
            await source.copy(source.header(), source.grant(vm_id="vm-2"), zeros())
        small = source.grant(disks=((DISK.id, DISK.size_bytes - 512),))
        with pytest.raises(Denied, match="granted") as refused:
            await source.copy(source.header(), small, zeros())
        assert refused.value.code == "NOT_GRANTED"
        with pytest.raises(Denied, match="not in it"):
            await source.copy(source.header(), source.grant(disks=(("disk-2", 1 << 40),)), zeros())
        assert source.written() == before


async def test_an_older_term_is_refused_with_the_newer_one_and_a_newer_is_kept(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        newer = source.header(term=5)
        await source.copy(newer, source.grant(term=5), zeros())
        assert (await source.peer.ask(source.grant(term=1), MACHINE)).term == 5
        older = source.header(term=4, number=2, parent=1, parent_id=newer.id, kind=Kind.DELTA, consistency="crash")
        with pytest.raises(Precondition, match="term 5") as refused:
            await source.copy(older, source.grant(term=4), zeros())
        assert refused.value.code == "OLDER_TERM"


async def test_a_cycle_of_another_term_than_its_grant_is_refused(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        with pytest.raises(Denied):
            await source.copy(source.header(term=2), source.grant(term=1), zeros())
        assert (await source.peer.ask(source.grant(), MACHINE)).term == 1


async def test_a_host_without_a_replica_of_the_vm_says_so(tmp_path: Path) -> None:
    async with target(tmp_path, prepare=False) as source:
        with pytest.raises(Precondition) as refused:
            await source.peer.ask(source.grant(), MACHINE)
        assert refused.value.code == "NOT_TARGET"
        assert not source.written()


BAD = {
    "beyond the disk": zeros(start=10, count=7),
    "out of order": zeros(2),
    "a zero run without end": zeros(count=(1 << 63) - 1),
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
        await source.copy(source.header(), source.grant(), zeros())


async def test_content_that_changed_on_the_way_is_not_committed(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        sending = await source.peer.send(1, source.header(), 0, source.grant())
        await sending.write(zeros(), 1)
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


async def test_a_target_that_goes_silent_is_given_up(tmp_path: Path) -> None:
    async with target(tmp_path) as source:
        clock = MovedClock()
        source.peer = Peer(source.me, source.target, source.peer._address, clock)
        held = (await source.agent.targets.receptions.get(MACHINE.id)).held
        gate = threading.Event()
        stuck = asyncio.ensure_future(held.run(gate.wait))  # as by a disk that does not answer
        try:
            sending = await source.peer.send(1, source.header(), 0, source.grant())
            await sending.write(zeros(), 1)
            watching = asyncio.ensure_future(sending.watch())
            while not watching.done():
                await asyncio.sleep(0)
                if clock._sleepers:  # it may be saying that it is there, which takes the network's own time
                    clock.advance(10)
                assert clock.monotonic() < 1_800_000_000 + 700
            with pytest.raises(Unreachable) as given_up:
                await watching
            assert given_up.value.code == "STALLED"
            sending.cancel()
        finally:
            gate.set()
        await stuck


async def test_a_source_that_goes_silent_is_given_up_and_may_come_again(tmp_path: Path) -> None:
    async with target(tmp_path, transfer=TransferSettings(silent_seconds=1)) as source:
        sending = await source.peer.send(1, source.header(), 0, source.grant())
        await sending.write(zeros(), 1)
        with pytest.raises(Aborted) as given_up:
            async for _ in sending.acks():
                pass
        assert given_up.value.code == "SOURCE_SILENT"
        await source.copy(source.header(), source.grant(), zeros())
