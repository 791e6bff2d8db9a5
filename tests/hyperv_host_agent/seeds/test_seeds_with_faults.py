"""Every way in which media arrive wrong has its name, changes nothing, or heals over the network."""

import asyncio
import base64
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hyperv_host_agent.runfile import identity_folder
from hyperv_host_agent.seeds import manifest as manifests
from hyperv_host_agent.seeds.manifest import Manifest
from hyperv_host_agent.seeds.parts import HEADER_BYTES, RECORD_BYTES, part_name
from hyperv_host_agent.store.base import SeedStopped
from tests.fakes.agent_pair import FIRST, SECOND
from tests.fakes.host_provider import eventually
from tests.fakes.newest_point import newest
from tests.fakes.pki import TestVault
from tests.fakes.seeded_pair import Seeded, seeded_pair
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.api.types.v1 import commands_pb2
from twinsite.credentials import Credentials
from twinsite.extents import CLUSTER


async def assert_equal(seeded: Seeded) -> None:
    await seeded.two.settled(seeded.machine.id)
    _, found = await newest(seeded.two.target, seeded.machine.id)
    assert found == {FIRST: seeded.guest.content(FIRST), SECOND: seeded.guest.content(SECOND)}


def credentials(folder: Path, host: str) -> Credentials:
    return Credentials.load(identity_folder(folder / host / "state"))


def read(seeded: Seeded, folder: Path) -> Manifest:
    vault = seeded.two.provider.vault
    return manifests.read(folder, vault=vault.vault, roots_pem=vault.roots_pem)


async def refused(seeded: Seeded, path: Path) -> str:
    result = await seeded.import_(path)
    assert not result.ok
    assert result.error.next_step
    assert seeded.two.at_target.statuses[seeded.machine.id].awaiting_seed
    return result.error.code


async def test_media_that_are_not_this_seed_are_refused_each_with_its_name(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path) as seeded:
        empty = seeded.carry("empty")
        assert await refused(seeded, empty) == "SEED_MISSING"
        exported = await seeded.export()
        assert exported.ok, exported.error
        source = credentials(tmp_path, "a1")
        stranger = seeded.two.provider.vault.host()
        name = seeded.folder.name

        def copied(label: str, change: Callable[[Path], None]) -> Path:
            copy = seeded.carry(label)
            change(copy / name)
            return copy

        def rewritten(by: Credentials = source, **changes: Any) -> Callable[[Path], None]:
            def change(folder: Path) -> None:
                made = replace(read(seeded, folder), **changes)
                (folder / manifests.FILE).write_bytes(made.encode(by))
                if "seed" in changes:
                    folder.rename(folder.with_name(manifests.folder_name(seeded.machine.id, made.seed)))

            return change

        def flipped(folder: Path) -> None:
            path = folder / manifests.FILE
            path.write_bytes(path.read_bytes().replace(b'"after_cycle": ', b'"after_cycle": 1'))

        other_vault = TestVault()
        for label, change, code in (
            ("interrupted", lambda folder: (folder / manifests.FILE).unlink(), "SEED_INTERRUPTED"),
            ("flipped", flipped, "MANIFEST_DAMAGED"),
            ("nonsense", lambda folder: (folder / manifests.FILE).write_bytes(b"{}"), "MANIFEST_DAMAGED"),
            ("vault", rewritten(other_vault.host(), vault=other_vault.vault), "OTHER_VAULT"),
            ("forged", rewritten(stranger), "MANIFEST_DAMAGED"),
            ("source", rewritten(stranger, source_host=stranger.identity.id), "OTHER_SOURCE"),
            ("target", rewritten(target_host="h-000000000000"), "OTHER_TARGET"),
            ("machine", rewritten(vm_id="another-vm"), "OTHER_MACHINE"),
            ("older", rewritten(seed=b"e" * 16), "OLDER_SEED"),
            ("key", rewritten(key_for="0" * 64), "SEED_KEY_GONE"),
            ("moved-key", rewritten(sealed_key=b"k" * 100), "SEED_KEY_GONE"),
            ("bare", lambda folder: [path.unlink() for path in folder.glob("part-*")], "SEED_UNREADABLE"),
        ):
            assert await refused(seeded, copied(label, change)) == code, label  # type: ignore[arg-type]
        other = seeded.medium / f"twinsite-seed-another-vm-{'0' * 32}"
        other.mkdir()
        assert await refused(seeded, other) == "OTHER_MACHINE"
        shutil.rmtree(other)
        imported = await seeded.import_()
        assert imported.ok, imported.error
        await assert_equal(seeded)


async def test_what_is_damaged_missing_cut_or_swapped_is_named_and_comes_over_the_network(tmp_path: Path) -> None:
    size = 3 * RECORD_BYTES + HEADER_BYTES
    async with seeded_pair(tmp_path, part_bytes=size, size=96 << 20, noise=True) as seeded:
        await seeded.export()
        await seeded.export(path=seeded.carry("again"))
        parts = seeded.parts()
        assert len(parts) >= 7
        damaged = bytearray(parts[0].read_bytes())
        damaged[HEADER_BYTES + RECORD_BYTES + 1000] ^= 1
        parts[0].write_bytes(damaged)
        parts[1].unlink()
        with parts[2].open("r+b") as file:
            file.truncate(HEADER_BYTES + RECORD_BYTES + 5)
        third, fourth = parts[3].read_bytes(), parts[4].read_bytes()
        parts[3].write_bytes(fourth)
        parts[4].write_bytes(third)
        foreign = bytearray(parts[5].read_bytes())
        foreign[8:24] = b"another seed's  "
        parts[5].write_bytes(foreign)
        imported = await seeded.import_()
        assert imported.ok, imported.error
        for text in (
            "part 1 of the seed is damaged in record 2",
            "part 2 of the seed is missing",
            "part 3 of the seed has",
            "part-000004 is part 5, not part 4",
            "part-000005 is part 4, not part 5",
            "and 1 more",
            "over the network",
        ):
            assert text in imported.note
        await assert_equal(seeded)
        replica = (await seeded.two.target.targets.receptions.get(seeded.machine.id)).held.replica
        assert replica.state().wanted == ()
        assert list(replica.verify()) == []


async def test_an_export_that_failed_goes_on_after_its_last_whole_part(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path) as seeded:
        seeded.guest.broken_disks.add(SECOND)
        failed = await seeded.export()
        assert failed.error.code == "SOURCE_FAILED"
        before = {path.name: path.read_bytes() for path in seeded.parts()}
        assert before
        assert not (seeded.folder / manifests.FILE).exists()
        assert await refused(seeded, seeded.medium) == "SEED_INTERRUPTED"
        (seeded.folder / "part-000009.tmp").write_bytes(b"rest")
        seeded.guest.broken_disks.clear()
        exported = await seeded.export()
        assert exported.ok, exported.error
        after = {path.name: path.read_bytes() for path in seeded.folder.iterdir()}
        assert {name: after[name] for name in before} == before
        assert set(after) - set(before) == {part_name(len(before) + 1), manifests.FILE}
        again = await seeded.export()
        assert "complete already" in again.note
        part = seeded.parts()[0]
        part.write_bytes(part.read_bytes()[:-1])
        assert (await seeded.export()).ok
        assert part.stat().st_size == HEADER_BYTES + RECORD_BYTES
        assert (await seeded.import_()).ok
        await assert_equal(seeded)
        assert list((tmp_path / "a1" / "state").rglob("seed-export.json")) == []


async def test_an_export_is_refused_with_its_reason_before_anything_is_written(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path) as seeded:
        two, vault = seeded.two, seeded.two.provider.vault
        seeded.around.room = 1 << 20
        assert (await seeded.export()).error.code == "SEED_PATH_TOO_SMALL"
        seeded.around.room = 1 << 40
        assert [path.name for path in seeded.medium.iterdir()] == []
        for path, code in ((tmp_path, "SEED_PATH_ON_HYPERVISOR"), (tmp_path / "nowhere", "SEED_PATH_MISSING")):
            assert (await seeded.export(path)).error.code == code
        for certificate in (
            b"",
            two.provider.chains[two.source.host_id],
            vault.host().chain_pem,
            TestVault(vault.vault).host(two.target.host_id).chain_pem,
        ):
            assert (await seeded.export(target_certificate=certificate)).error.code == "BAD_TARGET_CERTIFICATE"
        assert (await seeded.export(vm_id="another-vm")).error.code == "NOT_REPLICATED_HERE"
        taken = seeded.medium / manifests.folder_name(seeded.machine.id, b"o" * 16)
        taken.mkdir()
        assert (await seeded.export()).error.code == "SEED_PATH_TAKEN"
        assert list(taken.iterdir()) == []
        taken.rmdir()
        assert list(seeded.medium.iterdir()) == []


async def test_a_vm_that_went_over_the_network_has_nothing_to_export_for(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path, protect=False) as seeded:
        await seeded.two.protect(seeded.machine)
        await seeded.two.replicated(seeded.machine.id)
        assert (await seeded.export()).error.code == "SEED_NOT_AWAITED"
        assert (await seeded.import_()).error.code == "SEED_NOT_AWAITED"


async def test_a_certificate_renewed_while_the_seed_travels_does_not_lose_its_key(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path, life=16.0) as seeded:
        exported = await seeded.export()
        assert exported.ok, exported.error
        key_for = json.loads((seeded.folder / manifests.FILE).read_bytes())["seed"]["key_for"]
        kept = tmp_path / "b1" / "state" / "seed-keys" / f"{key_for}.pem"
        sessions = seeded.two.at_target.sessions
        await eventually("the target to be back", lambda: kept.exists() and seeded.two.at_target.sessions > sessions)
        imported = await seeded.import_()
        assert imported.ok, imported.error
        assert not kept.exists()
        await assert_equal(seeded)


async def test_disks_that_grow_shrink_and_go_while_the_seed_travels_are_right_at_the_next_point(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path, protect=False) as seeded:
        guest, two = seeded.guest, seeded.two
        granted = two.grant(two.describe(seeded.machine.id), disks=((FIRST, 1 << 30), (SECOND, 1 << 30)))
        await two.protect(seeded.machine, offline=True, document=granted)
        await seeded.awaited()
        guest.resize(FIRST, (8 << 20) + 40 * CLUSTER)
        guest.write(FIRST, (8 << 20) + 3 * CLUSTER, b"in what is new")
        await seeded.export()
        guest.resize(SECOND, 2 * CLUSTER + 1024)
        assert (await seeded.import_()).ok
        await assert_equal(seeded)


async def test_the_signature_in_the_manifest_is_over_what_people_read(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path) as seeded:
        await seeded.export()
        document = json.loads((seeded.folder / manifests.FILE).read_bytes())
        assert set(document) == {"seed", "certificates", "signature"}
        assert base64.b64decode(document["signature"])
        assert read(seeded, seeded.folder).disks[0].id == FIRST


async def test_what_somebody_laid_on_the_medium_is_neither_followed_nor_waited_for(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path) as seeded:
        precious = tmp_path / "precious"
        precious.mkdir()
        (precious / "part-000001").write_bytes(b"not ours")
        await seeded.export()
        name, key = seeded.folder.name, seeded.folder / manifests.FILE
        key.unlink()
        for path in seeded.parts():
            path.unlink()
        (seeded.folder / "part-000001.tmp").symlink_to(precious / "part-000001")
        (seeded.folder / "notes.txt").write_bytes(b"of a person")
        assert (await seeded.export()).ok
        assert (seeded.folder / "notes.txt").read_bytes() == b"of a person"
        linked = seeded.carry("linked")
        shutil.rmtree(linked / name)
        (linked / name).symlink_to(precious, target_is_directory=True)
        assert (await seeded.export(linked)).error.code == "SEED_PATH_TAKEN"
        assert (precious / "part-000001").read_bytes() == b"not ours"
        piped = seeded.carry("piped")
        (piped / name / manifests.FILE).unlink()
        os.mkfifo(piped / name / manifests.FILE)
        assert await refused(seeded, piped) == "MANIFEST_DAMAGED"
        seeded.parts()[0].unlink()
        os.mkfifo(seeded.folder / "part-000001")
        imported = await seeded.import_()
        assert "it is no file" in imported.note
        await assert_equal(seeded)


async def test_an_export_that_is_cancelled_can_be_taken_up_again(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path) as seeded:
        view = seeded.two.at_source
        with seeded.guest._lock:  # nothing of the disks can be read
            seeded.send_export()
            command = f"export-{seeded.orders}@1"
            await eventually("the command to be taken", lambda: command in view.received)
            view.outgoing.put_nowait(pb.ToHost(cancel=commands_pb2.CancelCommand(id=command)))
            running = seeded.two.source.commands._running
            await eventually(
                "the command to be cancelled", lambda: command not in running or running[command][0].cancelled
            )
        result = await seeded.two.provider.result(seeded.two.source.host_id, command)
        assert result.error.code == "COMMAND_CANCELLED"
        assert list(seeded.medium.rglob(manifests.FILE)) == []
        assert (await seeded.export()).ok
        assert (await seeded.import_()).ok
        await assert_equal(seeded)


async def test_an_agent_that_restarts_in_the_midst_of_an_export_finishes_it(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path) as seeded:
        two, lock = seeded.two, seeded.guest._lock
        lock.acquire()
        seeded.send_export()
        command = f"export-{seeded.orders}@1"
        await eventually("the command to be taken", lambda: command in two.at_source.received)
        running = two.source.commands._running

        async def released() -> None:
            """Not before the agent ends."""
            await eventually("the agent to end", lambda: not running or running[command][1].cancelling())
            lock.release()

        async with asyncio.TaskGroup() as group:
            group.create_task(released())
            await two.restart_source()
        result = await two.provider.result(two.source.host_id, command)
        assert result.ok, result.error
        assert (await seeded.import_()).ok
        await assert_equal(seeded)


async def test_ending_the_protection_does_not_wait_for_an_export(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path) as seeded:
        two, lock = seeded.two, seeded.guest._lock
        lock.acquire()
        seeded.send_export()
        command = f"export-{seeded.orders}@1"
        await eventually("the command to be taken", lambda: command in two.at_source.received)

        async def released() -> None:
            """Not before the protection ends."""
            await eventually("the end", lambda: not two.source.sources.assigned(seeded.machine.id))
            lock.release()

        async with asyncio.TaskGroup() as group:
            group.create_task(released())
            two.provider.assign(two.source.host_id)
            forgotten = await two.provider.order(
                two.source.host_id, "forget@1", forget_source=commands_pb2.ForgetSource(vm_id=seeded.machine.id)
            )
        assert forgotten.ok, forgotten.error
        result = await two.provider.result(two.source.host_id, command)
        assert result.error.code in {"REPLICATION_ENDED", "NOT_REPLICATED_HERE"}


async def test_a_replica_that_is_removed_ends_the_import_of_its_seed(tmp_path: Path) -> None:
    async with seeded_pair(tmp_path) as seeded:
        await seeded.export()
        held = (await seeded.two.target.targets.receptions.get(seeded.machine.id)).held
        held.replica.seed_begin(held.replica.state().seed)
        two = seeded.two
        two.provider.assign(two.source.host_id)
        two.provider.assign(two.target.host_id)
        removed = await two.provider.order(
            two.target.host_id, "remove@1", remove_replica=commands_pb2.RemoveReplica(vm_id=seeded.machine.id)
        )
        assert removed.ok, removed.error
        with pytest.raises(SeedStopped):
            held.replica.seed_commit(after_cycle=1, lacking=())
        assert (await seeded.import_()).error.code == "REPLICA_MISSING"
