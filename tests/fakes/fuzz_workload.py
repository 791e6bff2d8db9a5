"""What comes from a peer, a medium or a disk, changed at random and read: nothing but typed errors, in little memory.

`fuzz_workload.py FOLDER` reads every mutant there is, `fuzz_workload.py FOLDER KIND NUMBER` one of them again.
"""

import os
import random
import resource
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from google.protobuf.message import Message

from hyperv_host_agent import wire
from hyperv_host_agent.replication import frames
from hyperv_host_agent.replication.cycle import TargetState
from hyperv_host_agent.replication.receiver import Receiver
from hyperv_host_agent.replication.receiving import BatchReceived, Began, Begun, EndReceived, Granted, Refuse
from hyperv_host_agent.seeds import manifest as seed_manifests
from hyperv_host_agent.seeds import parts
from hyperv_host_agent.store import copies, files, rules, seeding
from hyperv_host_agent.store.base import Replica
from hyperv_host_agent.store.chain import ChainStore
from hyperv_host_agent.store.chains import Chains
from hyperv_host_agent.store.formats.qcow2 import ChainReader, Layer
from hyperv_host_agent.store.formats.side_file import SideFile, side_path
from hyperv_host_agent.store.layer_check import LayerCheck
from hyperv_host_agent.store.layer_content import LayerContent
from hyperv_host_agent.store.manifests import LayerRef, Manifest
from hyperv_host_agent.store.merging import Intent
from tests.fakes import mutants
from tests.fakes.pki import TestVault
from tests.fakes.replicated_machine import Cycle, Machine, batch_of, send, stage
from tests.fakes.seeded_machine import placeholder
from twinsite.api.host.v1 import replication_pb2 as pb
from twinsite.api.types.v1 import types_pb2
from twinsite.digest import FINGERPRINT_BYTES
from twinsite.errors import TwinsiteError
from twinsite.extents import CLUSTER, clusters
from twinsite.units import MiB

VM: Final = "vm"
MUTANTS: Final = {
    "message": 48_000,
    "frame": 36_000,
    "document": 12_000,
    "layer": 6_000,
    "side": 6_000,
    "replica": 800,
    "journal": 250,
    "part": 400,
    "record": 200,
    "seed": 1_500,
}
MEMORY: Final = 256 * MiB  # of address space, more than the program has when it begins
_DEEP: Final = 12  # clusters of a layer that are read

Read = Callable[[random.Random], None]


def machine() -> Machine:
    made = Machine(VM, {"a": bytearray(9 * CLUSTER), "b": bytearray(3 * CLUSTER + 512)}, seed=3)
    made.write("a", 0, made.random.randbytes(2 * CLUSTER))
    made.write("b", 100, b"text " * 1000)
    return made


def replica_in(root: Path) -> list[Cycle]:
    """A closed replica that has every kind of document: points in packs, pins, keeps, an unfinished cycle."""
    source, cycles = machine(), []
    store = ChainStore(root, reserve=0)
    replica = store.create(VM, term=1)
    for number in range(1, 20):
        source.write("a", number % 9 * CLUSTER, b"cycle %d" % number)
        cycles.append(source.cycle())
        send(replica, cycles[-1])
    replica.maintain(keep=range(30))
    replica.attach(2, "user")
    replica.mark(3, keep=True, name="three", lock_seconds=60)
    replica.want([])
    replica.scrub(1, 1.0)
    source.write("b", 0, b"unfinished")
    cycles.append(source.cycle())
    replica.begin(cycles[-1].header, resume_after=0)
    stage(replica, cycles[-1].batches)
    replica.sync()
    replica.close()
    return cycles


# ------------------------------------------------------------------------------------------------- from a peer


def messages(_folder: Path) -> Read:
    """Messages of a stream, byte by byte."""
    cycle = machine().cycle()
    samples = [wire.encode(header, [payload]) for header, payload in _frames(cycle)]

    def read(dice: random.Random) -> None:
        _arrive(cycle, mutants.mutated(dice.choice(samples), dice, samples))

    return read


def frames_of(_folder: Path) -> Read:
    """Messages whose header says something else than what follows."""
    cycle = machine().cycle()
    samples = list(_frames(cycle))

    def read(dice: random.Random) -> None:
        header, payload = dice.choice(samples)
        changed = pb.FrameHeader()
        changed.CopyFrom(header)
        for _ in range(dice.choice((1, 1, 2, 3))):
            _change(changed, dice)
        if not dice.randrange(4):
            payload = mutants.mutated(payload, dice)
        _arrive(cycle, wire.encode(changed, [payload]))

    return read


def _frames(cycle: Cycle) -> Iterator[tuple[pb.FrameHeader, bytes]]:
    header = replace(cycle.header, machine=types_pb2.Machine(id=VM, name="web").SerializeToString())
    yield wire.begin(header, resume_after=0, grant=types_pb2.SignedDocument(key_id="k", body=b"p")), b""
    small = batch_of(1, 0, b"x" * CLUSTER * 5, [1, 3, 4], [2])
    for batch in (small, *(batch for batch, _ in cycle.batches[:1])):
        made = wire.batch_header(
            batch.sequence,
            batch.disk,
            clusters=batch.clusters,
            lengths=batch.lengths,
            prints=batch.fingerprints,
            zeros=batch.zero_runs,
        )
        yield made, bytes(batch.payload)
    yield wire.end(3, b"d" * 16), b""


def _change(message: Message, dice: random.Random) -> None:
    """Change one field of a message, or of one inside it."""
    fields = message.ListFields()
    if not fields:
        return
    field, value = dice.choice(fields)
    repeated = isinstance(value, (list, tuple)) or hasattr(value, "append") or hasattr(value, "add")
    if repeated:
        kind = dice.randrange(4)
        if kind == 0 and len(value):
            del value[dice.randrange(len(value))]
        elif field.message_type is not None:
            if len(value):
                value.append(value[0]) if kind == 1 else _change(dice.choice(value), dice)
        elif kind == 1 and len(value):
            value[dice.randrange(len(value))] = value[dice.randrange(len(value))]
        else:
            at = dice.randrange(len(value) + 1)
            value[at:at] = [
                _other(field.cpp_type == field.CPPTYPE_STRING, field.cpp_type == field.CPPTYPE_UINT32, dice)
            ]
    elif field.message_type is not None:
        message.ClearField(field.name) if not dice.randrange(4) else _change(value, dice)
    elif isinstance(value, bytes):
        setattr(message, field.name, mutants.mutated(value, dice))
    elif isinstance(value, str):
        setattr(message, field.name, dice.choice(("", "x", "../x", "a" * 300, "none", "crash", value + "é")))
    elif isinstance(value, bool):
        setattr(message, field.name, not value)
    elif isinstance(value, float):
        setattr(message, field.name, dice.choice((0.0, -1.0, float("inf"), float("nan"), 1e300)))
    else:
        number = dice.choice((*mutants.NUMBERS, value + 1, value - 1 if value else 0))
        small = field.cpp_type in {field.CPPTYPE_UINT32, field.CPPTYPE_INT32, field.CPPTYPE_ENUM}
        signed = field.cpp_type in {field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_ENUM}
        setattr(
            message, field.name, number % (1 << (31 if small and signed else 32 if small else 63 if signed else 64))
        )


def _other(text: bool, small: bool, dice: random.Random) -> object:  # of a field's type
    if text:
        return "x"
    return dice.choice(mutants.NUMBERS) % (1 << (32 if small else 64))


def _arrive(cycle: Cycle, message: bytes) -> None:
    """As a target takes a message: decoded, put before the receiver, and before the store's own rules."""
    decoded = wire.decode(message)
    geometry = cycle.header.disks
    receiver = Receiver(VM, TargetState(term=1, committed=None, unfinished=None))
    kind = decoded.header.WhichOneof("frame")
    granted = Granted(1, geometry)
    if kind == "begin":
        header = wire.cycle_of(decoded.header.begin, VM)
        orders = receiver.handle(Began(1, header, decoded.header.begin.resume_after, granted), 0.0)
        if not any(isinstance(order, Refuse) for order in orders):
            rules.check_header(header, VM, TargetState(1, None, None))
        return
    receiver.handle(Began(1, cycle.header, 0, granted), 0.0)
    receiver.handle(Begun(1, TargetState(1, None, None)), 0.0)
    if kind == "batch":
        batch = wire.batch_of(decoded, 1)
        orders = receiver.handle(BatchReceived(1, batch, (decoded.body,)), 0.0)
        if not any(isinstance(order, Refuse) for order in orders):
            frames.check_batch(cycle.header, batch, 1)
            rules.check_batch(cycle.header, batch, sequence=1)
    elif kind == "end":
        receiver.handle(EndReceived(1, decoded.header.end.batches, decoded.header.end.digest), 0.0)


# ------------------------------------------------------------------------------------------------ from the disk


def documents(folder: Path) -> Read:
    """Sealed documents, byte by byte and sealed anew."""
    cycles = replica_in(folder)
    replica = ChainStore(folder, reserve=0).open(VM)
    catalog = replica._catalog  # what it wrote
    layer = catalog.chains.disks["a"][0]
    manifest = catalog.manifests[19]
    seeded = seeding.Seeded(cycles[0].header.id, 1, 2, (), 3)
    path = folder / "document"

    def read_as(decode: Callable[[dict[str, Any]], object]) -> Callable[[bytes], object]:
        def read(data: bytes) -> None:
            path.write_bytes(data)
            documents, problems = copies.read(path, decode)
            assert len(documents) + len(problems) == 1

        return read

    samples: list[tuple[bytes, Callable[[bytes], object]]] = [
        (manifest.encode(), Manifest.decode),
        (files.seal(catalog.chains.document()), read_as(Chains.decode)),
        (Intent("a", (layer.file,), layer).encode(), Intent.decode),
        (files.seal(seeded.document()), read_as(seeding.Seeded.decode)),
    ]
    replica.close()

    def read(dice: random.Random) -> None:
        sample, decode = dice.choice(samples)
        data = _resealed(sample, dice) if dice.randrange(3) else mutants.mutated(sample, dice)
        try:
            decode(data)
        except ValueError:
            return

    return read


def _resealed(data: bytes, dice: random.Random) -> bytes:
    changed = mutants.mutated_document(files.unseal(data), dice)
    return files.seal(changed if isinstance(changed, dict) else {"document": changed})


def replicas(folder: Path) -> Read:
    """Any document of a replica in its place; the replica is opened, and used if that goes well."""
    prepared, root = folder / "prepared", folder / "store"
    replica_in(prepared)
    places = [
        path.relative_to(prepared)
        for path in sorted(prepared.rglob("*"))
        if path.is_file() and not {".qcow2", ".fp", ".journal"} & set(path.suffixes) and path.stat().st_size
    ]
    names = sorted({place.name if "points" not in place.parts else "points" for place in places})

    def read(dice: random.Random) -> None:
        _put_back(prepared, root)
        name = dice.choice(names)
        place = dice.choice([place for place in places if place.name == name or (name == "points" in place.parts)])
        sample = (root / place).read_bytes()
        data = _resealed(sample, dice) if dice.randrange(4) else mutants.mutated(sample, dice)
        (root / place).write_bytes(data)
        twin = root / place.with_name(place.name + ".copy")
        if twin.exists() and dice.randrange(4):
            twin.write_bytes(data)
        _use(root)

    return read


def journals(folder: Path) -> Read:
    """The journal of an unfinished cycle; that is gone on with if it can be."""
    prepared, root = folder / "prepared", folder / "store"
    cycle = replica_in(prepared)[-1]
    journal = prepared / VM / "receiving.journal"
    sample = journal.read_bytes()

    def read(dice: random.Random) -> None:
        _put_back(prepared, root)
        (root / VM / "receiving.journal").write_bytes(mutants.mutated(sample, dice))
        _use(root, cycle)

    return read


def _put_back(prepared: Path, root: Path) -> None:
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(prepared, root, copy_function=_linked)


def _linked(source: str, target: str) -> None:
    """Layers are never changed in place."""
    if source.endswith((".qcow2", ".fp", ".fp.copy")):
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


def _use(root: Path, cycle: Cycle | None = None) -> None:
    replica = ChainStore(root, reserve=0).open(VM)
    try:
        _look(replica, cycle)
    finally:
        replica.close()


def _look(replica: Replica, cycle: Cycle | None) -> None:
    state = replica.state()
    replica.points()
    replica.detach("user")
    if cycle and state.unfinished and state.unfinished.id == cycle.header.id:
        replica.begin(cycle.header, resume_after=state.unfinished.durable)
        for batch, chain in cycle.batches[state.unfinished.durable :]:
            replica.put(batch, chain)
        replica.commit()


def layers(folder: Path) -> Read:
    """Layer files: their tables and frames, as a reader, a merge and a check see them."""
    data, ref, path = _layer(folder)
    fd = os.open(path, os.O_RDWR)

    def read(dice: random.Random) -> None:
        undo = mutants.mutated_in_place(data, dice)
        size = dice.randrange(len(data)) if not dice.randrange(20) else len(data)
        if size != len(data) or not dice.randrange(500):
            os.ftruncate(fd, 0)
            os.pwrite(fd, data[:size], 0)
            undo.append((0, bytes(data)))
        for at, old in undo:
            os.pwrite(fd, data[at : at + len(old)][: max(0, size - at)], at)
        try:
            with closing(Layer(path)) as layer:
                for cluster, entry in zip(range(_DEEP), (entry for _, entry in layer.entries()), strict=False):
                    layer.frame(cluster, entry)
            with closing(ChainReader([path])) as reader:
                for cluster in range(min(_DEEP, clusters(reader.size))):
                    reader.read_cluster(cluster)
                reader.mapped(0, _DEEP)
            if not dice.randrange(4):
                with LayerCheck(path, ref, side_path(path)) as check:
                    list(check.frames(0))
                    check.tables_problem()
        finally:
            for at, old in undo:
                data[at : at + len(old)] = old
                os.pwrite(fd, old, at)
            if size != len(data):
                os.ftruncate(fd, len(data))
                os.pwrite(fd, data, 0)

    return read


def sides(folder: Path) -> Read:
    """Side files, as a reader of fingerprints and a check of the layer see them."""
    _, ref, layer = _layer(folder)
    path = side_path(layer)
    sample = path.read_bytes()

    def read(dice: random.Random) -> None:
        path.write_bytes(mutants.mutated(sample, dice))
        with closing(SideFile(path)) as side:
            side.digest()
            list(side.entries())
            side.count(0, 1 << 30)
            list(side.zeros(0, 100))
            side.at(3, 0, 100)
        with LayerContent(layer.parent, ref) as content:
            for entry, _ in zip(content.entries(), range(_DEEP), strict=False):
                content.content(entry)
        if not dice.randrange(4):
            with LayerCheck(layer, ref, path) as check:
                list(check.frames(0))

    return read


def _layer(folder: Path) -> tuple[bytearray, LayerRef, Path]:
    """A small layer with everything in it: frames of both kinds, zeros, an older version, something below."""
    source = machine()
    store = ChainStore(folder, reserve=0)
    replica = store.create(VM, term=1)
    for number in range(18):
        source.write("a", 0, b"changed %d" % number)
        source.write("a", 4 * CLUSTER, bytes(CLUSTER))
        send(replica, source.cycle())
    replica.maintain(keep=range(30))
    ref = replica._catalog.chains.disks["a"][-1]  # what it wrote
    replica.close()
    path = folder / VM / "a" / ref.file
    return bytearray(path.read_bytes()), ref, path


# ----------------------------------------------------------------------------------------------- from a medium

_SEED: Final = b"s" * 16
_KEY: Final = b"k" * parts.KEY_BYTES
_SIZES: Final = (9, 4)  # clusters


def parts_of(folder: Path) -> Read:
    """The files of a seed, byte by byte."""
    path = _part(folder, _gathered())
    data = bytearray(path.read_bytes())

    def read(dice: random.Random) -> None:
        undo = mutants.mutated_in_place(data, dice, first=100)
        cut = dice.randrange(len(data)) if not dice.randrange(4) else len(data)
        with path.open("r+b") as file:
            file.write(data)
            file.truncate(cut)
        for at, old in undo:
            data[at : at + len(old)] = old
        with closing(parts.PartReader(path, _SEED, 1, _KEY)) as reader:
            reader.read(1, _SIZES)

    return read


def records(folder: Path) -> Read:
    """Records that open with the seed's key and hold something else than they should."""
    plain = _gathered().encode(1)
    used = len(plain.rstrip(b"\0")) + 8

    class Changed(parts.Gathered):
        content = b""

        def encode(self, number: int) -> bytes:
            del number
            return self.content.ljust(parts.RECORD_BYTES - parts.TAG_BYTES, b"\0")[
                : parts.RECORD_BYTES - parts.TAG_BYTES
            ]

    def read(dice: random.Random) -> None:
        record = Changed(0, 0)
        record.content = mutants.mutated(plain[:used], dice)
        with closing(parts.PartReader(_part(folder, record), _SEED, 1, _KEY)) as reader:
            reader.read(1, _SIZES)

    return read


def _gathered() -> parts.Gathered:
    record, batch = parts.Gathered(0, 0), batch_of(1, 0, b"some text" * CLUSTER, [1, 2, 5])
    at = 0
    for place, (cluster, length) in enumerate(zip(batch.clusters, batch.lengths, strict=True)):
        prints = batch.fingerprints[place * FINGERPRINT_BYTES : (place + 1) * FINGERPRINT_BYTES]
        record.add(cluster, length, [batch.payload[at : at + length]], prints)
        at += length
    return record


def _part(folder: Path, record: parts.Gathered) -> Path:
    folder.mkdir(exist_ok=True)
    writer = parts.PartWriter(folder, _SEED, 1, _KEY)
    writer.add(record)
    writer.finish()
    return folder / parts.part_name(1)


def seeds(folder: Path) -> Read:
    """Manifests of seeds, byte by byte, and signed anew."""
    vault = TestVault()
    source = vault.host()
    header = placeholder(machine()).header
    ended = source.certificate.not_valid_before_utc.timestamp() + 60
    good = seed_manifests.Manifest(
        *(vault.vault, VM, "web", _SEED, source.identity.id, "h-000000000000", ended - 9, ended, 3),
        disks=header.disks,
        key_for="0" * 64,
        sealed_key=b"k" * 100,
        parts=(seed_manifests.Part(parts.HEADER_BYTES + parts.RECORD_BYTES, bytes(32)),) * 3,
    )
    sample = good.encode(source)
    document = seed_manifests.json.loads(sample)
    folder.mkdir()

    @dataclass(frozen=True)
    class Changed(seed_manifests.Manifest):
        body: object = None

        def _body(self) -> object:  # type: ignore[override]
            return self.body

    fields = {name: getattr(good, name) for name in good.__dataclass_fields__}

    def read(dice: random.Random) -> None:
        kind = dice.randrange(3)
        if kind == 0:
            data = mutants.mutated(sample, dice)
        elif kind == 1:
            data = seed_manifests.json.dumps(mutants.mutated_document(document, dice)).encode()
        else:
            try:
                data = Changed(**fields, body=mutants.mutated_document(document["seed"], dice)).encode(source)
            except ValueError:  # nobody can sign that
                data = mutants.mutated(sample, dice)
        (folder / seed_manifests.FILE).write_bytes(data)
        seed_manifests.read(folder, vault=vault.vault, roots_pem=vault.roots_pem)

    return read


KINDS: Final[dict[str, Callable[[Path], Read]]] = {
    "message": messages,
    "frame": frames_of,
    "document": documents,
    "layer": layers,
    "side": sides,
    "replica": replicas,
    "journal": journals,
    "part": parts_of,
    "record": records,
    "seed": seeds,
}


def fuzz(kind: str, folder: Path, numbers: range) -> int:
    """How many of them were refused. What is no typed error passes through."""
    read, refused = KINDS[kind](folder / kind), 0
    for number in numbers:
        try:
            read(random.Random(f"{kind}/{number}"))
        except TwinsiteError:
            refused += 1
        except BaseException:
            print(kind, number, flush=True)
            raise
    return refused


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0])
    if len(arguments) > 1:
        number = int(arguments[2])
        fuzz(arguments[1], folder, range(number, number + 1))
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for kind, most in MUTANTS.items():
        print(kind, most, fuzz(kind, folder, range(most)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
