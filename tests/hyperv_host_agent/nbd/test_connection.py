"""The client reads what QEMU and others export, and knows what they know."""

import hashlib
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.ports import free_port
from hyperv_host_agent.nbd.buffers import Buffers
from hyperv_host_agent.nbd.connection import ALLOCATION, DIRTY, ZERO, Connection, Extent, dirty_bitmap
from hyperv_host_agent.nbd.connections import Connections
from hyperv_host_agent.nbd.errors import ContextMissing, NbdBroken, NbdGone, NbdReadFailed, NbdRefused
from hyperv_host_agent.nbd.stream import Address, TcpAddress, UnixAddress
from tests.hyperv_host_agent.nbd.servers import create, need, qemu_io, qemu_nbd, running
from twinsite.extents import CLUSTER
from twinsite.units import KiB, MiB

SIZE = 24 * MiB + 1536
WHERE = 5 * MiB  # what is written
DATA = random.Random(1).randbytes(3 * MiB + 700)


@pytest.fixture(params=["qemu-nbd", "qemu-storage-daemon", "nbdkit", "nbdkit over TCP"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Address]:
    """DATA at WHERE, nothing else, as export "disk"."""
    raw = tmp_path / "disk.raw"
    with raw.open("wb") as file:
        file.truncate(SIZE)
        file.seek(WHERE)
        file.write(DATA)
    where = UnixAddress(tmp_path / "sock")
    if request.param == "qemu-nbd":
        with qemu_nbd(raw, where.path, "-r", "-f", "raw") as address:
            yield address
    elif request.param == "qemu-storage-daemon":
        need("qemu-storage-daemon")
        with running(
            "qemu-storage-daemon",
            *("--blockdev", f"driver=file,node-name=disk,filename={raw}"),
            *("--nbd-server", f"addr.type=unix,addr.path={where.path},max-connections=9"),
            *("--export", "type=nbd,id=e,node-name=disk,name=disk"),
            ready=where,
        ):
            yield where
    elif request.param == "nbdkit":
        need("nbdkit")
        with running("nbdkit", "-f", "-r", "-U", str(where.path), "file", str(raw), ready=where):
            yield where
    else:
        need("nbdkit")
        over = TcpAddress("127.0.0.1", free_port())
        with running("nbdkit", "-f", "-r", "-i", over.host, "-p", str(over.port), "file", str(raw), ready=over):
            yield over


@pytest.fixture
def connection(served: Address) -> Iterator[Connection]:
    made = Connection(served, "disk", contexts=(ALLOCATION,))
    yield made
    made.close()
    made.close()


def expected() -> bytes:
    return (bytes(WHERE) + DATA).ljust(SIZE, b"\0")


class TestReading:
    def test_every_byte_is_as_the_server_has_it(self, connection: Connection):
        assert connection.size == SIZE
        whole = bytearray(b"\xee" * SIZE)  # what a buffer holds before never shows
        connection.read_into(0, memoryview(whole))
        assert whole == expected()

    def test_requests_in_flight_come_back_in_any_order_each_with_its_own_content(self, connection: Connection):
        dice = random.Random(2)
        wanted = []
        for _ in range(300):
            offset = dice.randrange(SIZE)
            wanted.append((offset, dice.randint(1, min(256 * KiB, SIZE - offset))))
        lengths = dict(wanted)
        found = 0
        for offset, view in connection.read_many(wanted, Buffers(256 * KiB), depth=16):
            assert len(view) in {length for start, length in wanted if start == offset} or len(view) == lengths[offset]
            assert hashlib.sha256(view).digest() == hashlib.sha256(expected()[offset : offset + len(view)]).digest()
            found += 1
        assert found == len(wanted)

    def test_buffers_are_used_again(self, connection: Connection):
        buffers = Buffers(64 * KiB)
        seen = set()
        for _ in range(3):
            for _, view in connection.read_many(((at * 64 * KiB, 64 * KiB) for at in range(100)), buffers, depth=4):
                seen.add(id(view.obj))
        assert len(seen) <= 5

    def test_several_connections_read_at_once(self, served: Address):
        wrong = []

        def read() -> None:
            connection = Connection(served, "disk")
            whole = bytearray(SIZE)
            connection.read_into(0, memoryview(whole))
            connection.close()
            if whole != expected():
                wrong.append(1)

        threads = [threading.Thread(target=read) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong

    def test_holes_are_known_without_reading(self, connection: Connection):
        zeros = bytearray(SIZE)
        covered = 0
        for extent in connection.extents(ALLOCATION):
            assert extent.offset == covered
            covered = extent.end
            zeros[extent.offset : extent.end] = (b"\1" if extent.flags & ZERO else b"\0") * extent.length
        assert covered == SIZE
        assert zeros[0] == 1
        assert not any(mark and byte for mark, byte in zip(zeros, expected(), strict=True))
        part = list(connection.extents(ALLOCATION, WHERE + 4096, WHERE + 8192))
        assert [(extent.offset, extent.length, extent.flags & ZERO) for extent in part] == [(WHERE + 4096, 4096, 0)]

    def test_who_stops_reading_in_the_middle_ends_the_connection(self, connection: Connection):
        reading = connection.read_many([(0, 4096), (4096, 4096), (8192, 4096)], Buffers(4096), depth=2)
        next(reading)
        reading.close()
        assert not connection.usable
        with pytest.raises(NbdBroken, match="of no use"):
            connection.read_into(0, memoryview(bytearray(10)))

    def test_what_lies_outside_of_the_export_is_not_even_asked_for(self, connection: Connection):
        with pytest.raises(ValueError, match="of an export of"):
            connection.read_into(SIZE - 10, memoryview(bytearray(11)))

    def test_a_connection_that_is_cut_by_another_thread_ends_typed(self, served: Address):
        connection = Connection(served, "disk")
        connection.cut()
        with pytest.raises((NbdGone, NbdBroken)):
            connection.read_into(0, memoryview(bytearray(10)))
        connection.close()


class TestDirtyBitmaps:
    @pytest.fixture
    def image(self, tmp_path: Path) -> Path:
        need("qemu-img")
        image = tmp_path / "disk.qcow2"
        create(image, SIZE)
        qemu_io(image, "write -P 7 0 1M", "write -P 8 16M 1M")
        subprocess.run(["qemu-img", "bitmap", "--add", "-g", "64K", image, "since"], check=True)
        qemu_io(image, "write -P 1 3M 4K", f"write -P 2 {SIZE // 512 * 512 - 512} 512", "discard 0 64K")
        return image

    def test_what_changed_and_what_is_zero_are_told_apart(self, image: Path, tmp_path: Path):
        since = dirty_bitmap("since")
        with qemu_nbd(image, tmp_path / "sock", "-r", "-f", "qcow2", "-B", "since") as address:
            connection = Connection(address, "disk", contexts=(since, ALLOCATION))
            dirty = [extent for extent in connection.extents(since) if extent.flags & DIRTY]
            last = SIZE // CLUSTER * CLUSTER
            assert dirty == [
                Extent(0, CLUSTER, DIRTY),
                Extent(3 * MiB, CLUSTER, DIRTY),
                Extent(last, SIZE - last, DIRTY),
            ]
            assert next(connection.extents(ALLOCATION)).flags & ZERO
            connection.close()

    def test_a_bitmap_the_server_does_not_offer_is_an_error_and_never_nothing_changed(
        self, image: Path, tmp_path: Path
    ):
        with qemu_nbd(image, tmp_path / "sock", "-r", "-f", "qcow2") as address:
            with pytest.raises(ContextMissing, match="dirty-bitmap:since of export disk"):
                Connection(address, "disk", contexts=(dirty_bitmap("since"), ALLOCATION))
            connection = Connection(address, "disk", contexts=(ALLOCATION,))
            with pytest.raises(ValueError, match="not asked for"):
                list(connection.extents(dirty_bitmap("since")))
            connection.close()


class TestTrouble:
    def test_an_export_that_is_not_there(self, tmp_path: Path):
        create(tmp_path / "image", 1 * MiB)
        with (
            qemu_nbd(tmp_path / "image", tmp_path / "sock", "-f", "qcow2") as address,
            pytest.raises(NbdRefused, match="export 'other'"),
        ):
            Connection(address, "other")

    def test_no_server_at_all(self, tmp_path: Path):
        with pytest.raises(NbdGone, match="No such file"):
            Connection(UnixAddress(tmp_path / "none"), "disk")

    def test_a_server_that_dies_while_it_is_read_from(self, tmp_path: Path):
        create(tmp_path / "image", 64 * MiB, "raw")
        where = UnixAddress(tmp_path / "sock")
        need("qemu-nbd")
        with running(
            "qemu-nbd", "-t", "-f", "raw", "-k", str(where.path), str(tmp_path / "image"), ready=where
        ) as server:
            connection = Connection(where, "")
            server.kill()
            server.wait()
            with pytest.raises(NbdGone):
                connection.read_into(0, memoryview(bytearray(1 * MiB)))
            assert not connection.usable
            connection.close()

    def test_a_bad_sector_is_an_error_of_that_request_only(self, tmp_path: Path):
        need("nbdkit")
        where = UnixAddress(tmp_path / "sock")
        (tmp_path / "fail").touch()
        command = ("nbdkit", "-f", "-U", str(where.path), "--filter=error", "memory", "1M")
        with running(*command, "error-pread-rate=100%", f"error-file={tmp_path / 'fail'}", ready=where):
            connection = Connection(where, "")
            with pytest.raises(NbdReadFailed, match="EIO"):
                list(connection.read_many([(at * 4096, 4096) for at in range(20)], Buffers(4096)))
            (tmp_path / "fail").unlink()
            content = bytearray(b"\xee" * 4096)
            connection.read_into(0, memoryview(content))
            assert content == bytes(4096)
            connection.close()

    def test_a_silent_server_is_given_up_in_time(self, tmp_path: Path):
        need("nbdkit")
        where = UnixAddress(tmp_path / "sock")
        with running("nbdkit", "-f", "-U", str(where.path), "--filter=delay", "memory", "1M", "rdelay=5", ready=where):
            connection = Connection(where, "", timeout=0.3)
            with pytest.raises(NbdGone, match="no answer within"):
                connection.read_into(0, memoryview(bytearray(10)))
            connection.close()


class TestConnections:
    def test_threads_share_few_connections_and_read_right(self, served: Address):
        connections = Connections(served, "disk", most=2)
        wrong, seen = [], set()

        def read(number: int) -> None:
            for at in range(number * 64 * KiB, SIZE - 64 * KiB, 640 * KiB):
                content = bytearray(64 * KiB)
                with connections.using() as connection:
                    seen.add(id(connection))
                    connection.read_into(at, memoryview(content))
                if content != expected()[at : at + 64 * KiB]:
                    wrong.append(at)

        threads = [threading.Thread(target=read, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert 1 <= len(seen) <= 2
        connections.close()
        connections.close()
        with pytest.raises(NbdGone, match="closed"), connections.using():
            pass

    def test_closing_ends_who_reads_and_leaves_no_socket(self, tmp_path: Path):
        need("nbdkit")
        where = UnixAddress(tmp_path / "sock")
        with running("nbdkit", "-f", "-U", str(where.path), "--filter=delay", "memory", "1M", "rdelay=20", ready=where):
            connections = Connections(where, "", most=2, timeout=30)
            begun, ends = threading.Event(), []

            def read() -> None:
                with connections.using() as connection:
                    begun.set()
                    try:
                        connection.read_into(0, memoryview(bytearray(4096)))
                    except NbdGone as error:
                        ends.append(str(error))

            thread = threading.Thread(target=read)
            thread.start()
            begun.wait(10)
            connections.close()
            thread.join(10)
            assert ends
