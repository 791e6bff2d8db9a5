"""A replica that begins with what the target has already: only what differs travels."""

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from hyperv_host_agent.seeds import images
from hyperv_host_agent.seeds.images import SCRATCH, ImageMissing, ImageUnreadable, ImageUnusable, QemuImgMissing
from tests.fakes.agent_pair import FIRST, ODD_SIZE, SECOND, SIZE, pair, spec
from tests.fakes.host_provider import assignment
from tests.fakes.layers import write_layer
from tests.fakes.newest_point import newest
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.extents import CLUSTER

CONTENT = random.Random(8).randbytes(SIZE // 2) + bytes(SIZE // 2)
TAIL = random.Random(9).randbytes(ODD_SIZE)


def qemu_img(*arguments: object) -> None:
    if shutil.which("qemu-img") is None:
        reason = "qemu-img is missing: apt-get install qemu-utils"
        if os.environ.get("TWINSITE_NO_SKIPS") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def raw(folder: Path, content: bytes, name: str = "image.raw") -> Path:
    """With holes where there are zeros."""
    path = folder / name
    with path.open("wb") as file:
        file.truncate(len(content))
        for at in range(0, len(content), CLUSTER):
            piece = content[at : at + CLUSTER]
            if piece.strip(b"\0"):
                file.seek(at)
                file.write(piece)
    return path


async def assert_begins_with(folder: Path, existing: dict[str, str], *, different: int) -> None:
    """Protect a VM at a target that has these images; `different` clusters of them differ."""
    async with pair(folder) as two:
        machine = spec()
        guest = two.add(machine, {FIRST: CONTENT, SECOND: TAIL})
        await two.protect(machine, existing=existing)
        await two.settled(machine.id)
        _, found = await newest(two.target, machine.id)
        assert found == {FIRST: guest.content(FIRST), SECOND: guest.content(SECOND)}
        status = two.at_source.statuses[machine.id]
        assert status.wire_bytes < (different + 1) * CLUSTER + 8192
        guest.write(FIRST, 3 * CLUSTER, b"and on")
        await two.settled(machine.id)
        _, found = await newest(two.target, machine.id)
        assert found[FIRST] == guest.content(FIRST)
        assert list((folder / "b1" / "store").glob(f"{SCRATCH}*")) == []


async def test_a_raw_image_of_nearly_the_same_content(tmp_path: Path) -> None:
    older = bytearray(CONTENT)
    older[9 * CLUSTER : 9 * CLUSTER + 7] = b"another"
    older[100 * CLUSTER : 100 * CLUSTER + 7] = b"deleted"
    images_ = {FIRST: str(raw(tmp_path, bytes(older))), SECOND: str(raw(tmp_path, TAIL, "tail.raw"))}
    await assert_begins_with(tmp_path, images_, different=2)


async def test_an_image_that_is_larger_and_one_that_is_smaller_than_the_disk(tmp_path: Path) -> None:
    larger, smaller = raw(tmp_path, CONTENT + b"x" * 5 * CLUSTER), raw(tmp_path, TAIL[: 2 * CLUSTER + 512], "small.raw")
    await assert_begins_with(tmp_path, {FIRST: str(larger), SECOND: str(smaller)}, different=2)


@pytest.mark.qemu
@pytest.mark.parametrize("options", [(), ("-o", "cluster_size=128k"), ("-c",), ("-c", "-o", "compression_type=zstd")])
async def test_qcow2_images_of_every_make(tmp_path: Path, options: tuple[str, ...]) -> None:
    plain, tail = raw(tmp_path, CONTENT), raw(tmp_path, TAIL, "tail.raw")
    for path in (plain, tail):
        qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, path, path.with_suffix(".qcow2"))
    existing = {FIRST: str(plain.with_suffix(".qcow2")), SECOND: str(tail.with_suffix(".qcow2"))}
    await assert_begins_with(tmp_path, existing, different=0)


async def test_what_cannot_be_read_in_is_refused_by_name_and_nothing_is_kept(tmp_path: Path) -> None:
    good = raw(tmp_path, CONTENT)
    vmdk = tmp_path / "disk.vmdk"
    vmdk.write_bytes(b"KDMV" + bytes(600))
    write_layer(tmp_path / "000001.qcow2", SIZE, {0: b"x" * CLUSTER}, "etc-shadow.qcow2")
    async with pair(tmp_path) as two:
        machine = spec()
        two.add(machine, {})
        shown = two.describe(machine.id)
        for number, (existing, code) in enumerate(
            (
                ({FIRST: str(tmp_path / "nowhere")}, "IMAGE_MISSING"),
                ({FIRST: "image.raw"}, "IMAGE_MISSING"),
                ({FIRST: str(tmp_path)}, "IMAGE_MISSING"),
                ({FIRST: str(good), SECOND: str(vmdk)}, "IMAGE_UNUSABLE"),
                ({FIRST: str(tmp_path / "000001.qcow2")}, "IMAGE_UNUSABLE"),
                ({"no-disk": str(good)}, "NO_SUCH_DISK"),
            ),
            start=1,
        ):
            refused = await two.prepare(shown, existing=existing, attempt=number)
            assert refused.error.code == code
            assert refused.error.next_step
        held = await two.target.targets.receptions.get(machine.id)
        assert held.held.replica.state().committed is None
        begun = await two.prepare(shown, existing={FIRST: str(good)}, attempt=20)
        assert begun.ok
        assert "images were read in" in begun.note
        again = await two.prepare(shown, existing={FIRST: str(good)}, attempt=21)
        assert "holds a point already" in again.note


async def test_without_qemu_img_only_plain_images_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_layer(tmp_path / "plain.qcow2", SIZE, {3: b"x" * CLUSTER}, None)
    odd = bytearray((tmp_path / "plain.qcow2").read_bytes())
    odd[20:24] = (17).to_bytes(4, "big")  # clusters of 128 KiB
    (tmp_path / "odd.qcow2").write_bytes(odd)
    monkeypatch.setenv("PATH", str(tmp_path))
    image = images.look(tmp_path / "plain.qcow2")
    assert image is not None
    assert [run.start for run in image.held()] == [3]
    image.close()
    assert images.look(tmp_path / "odd.qcow2") is None
    with pytest.raises(QemuImgMissing):
        await images.converted(tmp_path / "odd.qcow2", tmp_path / "out")


@pytest.mark.qemu
async def test_an_image_that_qemu_img_cannot_read_is_named(tmp_path: Path) -> None:
    qemu_img("create", "-f", "qcow2", "-o", "cluster_size=4k", tmp_path / "odd.qcow2", "1M")
    data = bytearray((tmp_path / "odd.qcow2").read_bytes())
    data[72] = 0x80  # a feature nobody knows
    (tmp_path / "odd.qcow2").write_bytes(data)
    with pytest.raises(ImageUnreadable):
        await images.converted(tmp_path / "odd.qcow2", tmp_path / "out")


def test_hostile_images_end_in_typed_errors(tmp_path: Path) -> None:
    path, chance = tmp_path / "image.qcow2", random.Random(4)
    write_layer(path, 96 * CLUSTER, {number: chance.randbytes(CLUSTER) for number in range(0, 90, 9)}, None)
    good = path.read_bytes()
    tables = len(good) - 6 * CLUSTER
    for _ in range(1500):
        changed = bytearray(good)
        for _ in range(chance.randrange(1, 5)):
            at = chance.choice(
                (chance.randrange(112), tables + chance.randrange(6 * CLUSTER), chance.randrange(len(good)))
            )
            changed[at] ^= 1 << chance.randrange(8)
        path.write_bytes(changed[: chance.choice((len(good), len(good), chance.randrange(len(good))))])
        try:
            image = images.look(path)
            if image is not None:
                for run in image.held():
                    image.read(run)
                    if run.start > 1 << 20:
                        break
                image.close()
        except (ImageMissing, ImageUnusable, ImageUnreadable) as error:
            assert error.text("public")


async def test_a_replica_that_was_kept_is_what_the_next_protection_begins_with(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        guest = two.add(machine, {FIRST: CONTENT, SECOND: TAIL})
        await two.protect(machine)
        await two.settled(machine.id)
        two.provider.assign(two.source.host_id)
        two.provider.assign(two.target.host_id)
        forgotten = await two.provider.order(
            two.source.host_id, "forget@1", forget_source=commands_pb2.ForgetSource(vm_id=machine.id)
        )
        assert forgotten.ok, forgotten.error
        guest.write(FIRST, 5 * CLUSTER, b"while nobody looked")
        shown = two.describe(machine.id)
        assert (await two.prepare(shown, attempt=2)).ok
        document = two.grant(shown)
        for role, host, peer in (
            (types_pb2.ROLE_TARGET, two.target, two.source),
            (types_pb2.ROLE_SOURCE, two.source, two.target),
        ):
            order = assignment(shown, role, document, peer=peer.host_id, address=two.target.address)
            two.provider.assign(host.host_id, order)
        await two.settled(machine.id)
        _, found = await newest(two.target, machine.id)
        assert found == {FIRST: guest.content(FIRST), SECOND: guest.content(SECOND)}
        assert two.at_source.statuses[machine.id].wire_bytes < 2 * CLUSTER
