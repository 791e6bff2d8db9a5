"""Manifests and parts with arbitrary bytes: typed errors only, nothing wrong is taken, memory stays bounded."""

import json
import os
import random
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest

from hyperv_host_agent.packing import Packed, Packer
from hyperv_host_agent.replication.cycle import DiskGeometry
from hyperv_host_agent.seeds import manifest as manifests
from hyperv_host_agent.seeds.exporting import Progress, SeedWriter, Unit, sealed
from hyperv_host_agent.seeds.manifest import Manifest
from hyperv_host_agent.seeds.parts import HEADER_BYTES, KEY_BYTES, RECORD_BYTES, PartReader, part_name
from tests.fakes.pki import TestVault
from twinsite import keys
from twinsite.clock import SystemClock
from twinsite.errors import TwinsiteError
from twinsite.extents import CLUSTER, Run

SEED = b"0123456789abcdef"
DISKS = (DiskGeometry("disk-a", 96 * CLUSTER, "a"), DiskGeometry("disk-b", 3 * CLUSTER + 512, "b"))
SIZES = (96, 4)
NUMBER = int(os.environ.get("TWINSITE_FUZZ", "20000"))  # mutations of each kind


class Written:
    """A seed in a folder, made without a host."""

    def __init__(self, folder: Path) -> None:
        self.vault = TestVault()
        self.source, self.target = self.vault.host(), self.vault.host()
        self.folder = folder / manifests.folder_name("vm", SEED)
        self.folder.mkdir()
        self.key = os.urandom(KEY_BYTES)
        writer = SeedWriter(self.folder, folder / "progress", Progress(SEED, 1.0, DISKS, self.key))
        source, packer = random.Random(3), Packer()
        self.content = {}
        for disk, size in enumerate(SIZES):
            for start in range(0, size, 32):
                run = Run(start, min(32, size - start))
                packed = Packed(disk)
                packer.pack(packed, run, source.randbytes(run.count * CLUSTER), None)
                writer.put(Unit(disk, run), packed)
        self.parts = writer.finish()
        made = Manifest(
            vault=self.vault.vault,
            vm_id="vm",
            vm_name="web01",
            seed=SEED,
            source_host=self.source.identity.id,
            target_host=self.target.identity.id,
            started=1.0,
            ended=SystemClock().now(),
            after_cycle=1,
            disks=DISKS,
            key_for=keys.thumbprint(self.target.certificate),
            sealed_key=b"",
            parts=self.parts,
        )
        self.manifest = sealed(made, self.key, self.target.certificate)
        (self.folder / manifests.FILE).write_bytes(self.manifest.encode(self.source))

    def read(self) -> Manifest:
        return manifests.read(self.folder, vault=self.vault.vault, roots_pem=self.vault.roots_pem)


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """A few bytes changed, taken out, put in or repeated."""
    made = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(made) + 1)
        match chance.randrange(5):
            case 0 if at < len(made):
                made[at] ^= 1 << chance.randrange(8)
            case 1:
                del made[at : at + chance.randrange(1, 40)]
            case 2:
                made[at:at] = chance.randbytes(chance.randrange(1, 20))
            case 3:
                made[at:at] = made[at : at + chance.randrange(1, 60)]
            case _:
                made[at : at + 3] = chance.choice((b"999", b"-1 ", b"1e9", b"nul", b"[[[", b'"a"', b"\xff\xff\xff"))
    return bytes(made)


def test_what_was_written_is_read(written: Written):
    found = written.read()
    assert found == written.manifest
    assert found.open_key(written.target) == written.key
    reader = PartReader(written.folder / part_name(1), SEED, 1, written.key)
    records = [reader.read(number, SIZES) for number in (1, 2, 3)]
    reader.close()
    assert [(record.disk, record.start, record.end) for record in records] == [(0, 0, 64), (0, 64, 96), (1, 0, 4)]


def test_a_manifest_with_changed_bytes_is_refused_or_says_the_same(written: Written):
    path = written.folder / manifests.FILE
    good, chance, same = path.read_bytes(), random.Random(11), 0
    for _ in range(NUMBER // 4):
        path.write_bytes(mutated(good, chance))
        try:
            assert written.read() == written.manifest  # a blank, or a certificate nobody needs
            same += 1
        except TwinsiteError as error:
            assert error.text("public")
    assert same < NUMBER // 16


def test_a_manifest_whose_values_are_of_other_kinds_is_refused_though_it_is_signed(written: Written):
    """By a member of the vault that is hostile: it can sign what it likes."""
    path, chance = written.folder / manifests.FILE, random.Random(5)
    values = (
        None,
        True,
        -1,
        0,
        1 << 70,
        1.5,
        "",
        "x" * 1000,
        [],
        [[]],
        [None],
        {},
        {"id": 1},
        [[1, 2, 3]],
        [["a", "b"]],
    )

    class Hostile(Manifest):
        body: dict[str, object]

        def _body(self) -> dict[str, object]:
            return self.body

    body = written.manifest._body()
    for _ in range(400):
        changed = json.loads(json.dumps(body))
        name = chance.choice(list(changed))
        place = changed
        if isinstance(changed[name], list) and chance.randrange(2):
            place, name = changed[name], 0
            if isinstance(place[0], dict):
                place, name = place[0], chance.choice(list(place[0]))
        place[name] = chance.choice(values)
        hostile = Hostile.__new__(Hostile)
        hostile.__dict__["body"] = changed
        try:
            path.write_bytes(hostile.encode(written.source))
        except ValueError:  # a float has no signed form
            continue
        try:
            found = written.read()
        except TwinsiteError as error:
            assert error.text("public")
        else:
            assert isinstance(found.vm_name, str)
            assert all(disk.size >= 0 for disk in found.disks)


def test_deep_and_long_manifests_are_refused(written: Written):
    path = written.folder / manifests.FILE
    for data in (b"[" * 200_000, b'{"seed":' * 50_000, b" " * (manifests.MOST_BYTES + 5), b"\xff" * 100, b"", b"null"):
        path.write_bytes(data)
        with pytest.raises(manifests.ManifestDamaged):
            written.read()


def test_a_part_with_changed_bytes_is_refused_record_by_record(written: Written):
    path, chance = written.folder / part_name(1), random.Random(7)
    good = bytearray(path.read_bytes())
    assert len(good) == HEADER_BYTES + 3 * RECORD_BYTES
    tracemalloc.start()
    for _ in range(NUMBER // 200):
        at, size = chance.randrange(len(good)), chance.choice((1, 4, 30, 5000))
        at = chance.randrange(HEADER_BYTES) if not chance.randrange(4) else at
        with path.open("r+b") as file:
            file.seek(at)
            file.write(chance.randbytes(size))
            if not chance.randrange(4):
                file.truncate(chance.randrange(len(good)))
        changed = path.read_bytes()
        try:
            reader = PartReader(path, SEED, 1, written.key)
        except TwinsiteError as error:
            assert error.text("public")
        else:
            for number in (1, 2, 3):
                start = HEADER_BYTES + (number - 1) * RECORD_BYTES
                whole = changed[start : start + RECORD_BYTES] == good[start : start + RECORD_BYTES]
                if whole and changed[:HEADER_BYTES] == good[:HEADER_BYTES]:
                    reader.read(number, SIZES)
                    continue
                with pytest.raises(TwinsiteError):
                    reader.read(number, SIZES)
            reader.close()
        path.write_bytes(good)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 64 << 20


def test_records_do_not_open_in_another_place(written: Written):
    path = written.folder / part_name(1)
    good = path.read_bytes()
    first, second = (good[HEADER_BYTES + at * RECORD_BYTES :][:RECORD_BYTES] for at in (0, 1))
    path.write_bytes(good[:HEADER_BYTES] + second + first + good[HEADER_BYTES + 2 * RECORD_BYTES :])
    reader = PartReader(path, SEED, 1, written.key)
    for number in (1, 2):
        with pytest.raises(TwinsiteError):
            reader.read(number, SIZES)
    reader.read(3, SIZES)
    reader.close()


def test_a_signed_seed_with_hostile_records_is_refused_record_by_record(written: Written):
    """By a source host that is hostile: its records open, but what is in them breaks the rules."""
    import struct

    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from hyperv_host_agent.seeds import parts

    path, chance = written.folder / part_name(1), random.Random(13)
    good = path.read_bytes()
    header = parts.Header.decode(good)
    assert header is not None
    aead: AESGCM = parts._aead(written.key, header)
    plain = aead.decrypt(parts._nonce(1), good[HEADER_BYTES:][:RECORD_BYTES], parts._bound(header, 1))
    length = struct.unpack_from("<IQQI", plain)[3]
    taken = 0
    for _ in range(NUMBER // 20):
        changed = bytearray(plain)
        for _ in range(chance.randrange(1, 4)):
            at = chance.choice((chance.randrange(24), 24 + chance.randrange(4), 28 + chance.randrange(2200)))
            changed[at] ^= 1 << chance.randrange(8)
        with path.open("r+b") as file:
            file.seek(HEADER_BYTES)
            file.write(aead.encrypt(parts._nonce(1), bytes(changed), parts._bound(header, 1)))
        reader = PartReader(path, SEED, 1, written.key)
        try:
            record = reader.read(1, SIZES)
        except TwinsiteError as error:
            assert error.text("public")
        else:
            taken += 1
            assert record.disk < 2
            assert 0 <= record.start <= record.end <= SIZES[record.disk]
            assert all(record.start <= cluster < record.end for cluster in record.batch.clusters)
        finally:
            reader.close()
    assert length < RECORD_BYTES
    assert taken  # a fingerprint may be anything: the scrub finds that


def test_the_key_of_one_seed_does_not_open_another(written: Written):
    moved = replace(written.manifest, seed=b"another seed 16b")
    with pytest.raises(manifests.SeedKeyGone):
        moved.open_key(written.target)
    with pytest.raises(manifests.SeedKeyGone):
        written.manifest.open_key(written.vault.host())
