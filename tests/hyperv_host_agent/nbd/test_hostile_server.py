"""A server may say anything: the client ends with a typed error or with what it asked for, in bounded memory."""

import contextlib
import random
import socket
import struct
import subprocess
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hyperv_host_agent.nbd import wire
from hyperv_host_agent.nbd.buffers import Buffers
from hyperv_host_agent.nbd.connection import ALLOCATION, Connection, dirty_bitmap
from hyperv_host_agent.nbd.errors import ContextMissing, NbdBroken, NbdError, NbdGone, NbdReadFailed, NbdRefused
from hyperv_host_agent.nbd.stream import UnixAddress
from tests.fakes.mutants import mutated
from tests.hyperv_host_agent.nbd.servers import create, qemu_io, qemu_nbd
from twinsite.units import KiB, MiB

SIZE = 4 * MiB
DIRTY_CONTEXT = dirty_bitmap("b")


@contextlib.contextmanager
def answering(where: Path, serve: Callable[[socket.socket], None]) -> Iterator[UnixAddress]:
    """Every connection gets what `serve` sends."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(where))
        listener.listen(8)

        def accept() -> None:
            while True:
                try:
                    made, _ = listener.accept()
                except OSError:
                    return
                with made, contextlib.suppress(OSError):
                    made.settimeout(10)
                    serve(made)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield UnixAddress(where)
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            where.unlink()


def blurting(said: bytes) -> Callable[[socket.socket], None]:
    """All its answers at once, whatever it is asked."""

    def serve(made: socket.socket) -> None:
        made.sendall(said)
        made.shutdown(socket.SHUT_WR)
        while made.recv(65536):
            pass

    return serve


def session(address: UnixAddress) -> None:
    """Always asks the same, in the same order."""
    connection = Connection(address, "disk", contexts=(DIRTY_CONTEXT, ALLOCATION), timeout=5)
    try:
        list(connection.extents(DIRTY_CONTEXT, 0, min(SIZE, connection.size)))
        list(connection.extents(ALLOCATION, 0, min(SIZE, connection.size)))
        requests = [(at * 128 * KiB, 128 * KiB) for at in range(4)]
        if connection.size >= SIZE:
            for _ in connection.read_many(requests, Buffers(128 * KiB), depth=1):
                pass
    finally:
        connection.close()


def recorded(tmp_path: Path) -> bytes:
    """What a real server says in a session."""
    image = tmp_path / "disk.qcow2"
    create(image, SIZE)
    qemu_io(image, "write -P 3 100K 90K", "write -P 4 400K 4K")
    subprocess.run(["qemu-img", "bitmap", "--add", str(image), "b"], check=True)
    qemu_io(image, "write -P 5 1M 64K", "write -P 6 3M 4K")
    said = bytearray()
    with qemu_nbd(image, tmp_path / "real", "-r", "-f", "qcow2", "-B", "b") as real:

        def serve(made: socket.socket) -> None:
            with socket.socket(socket.AF_UNIX) as behind:
                behind.connect(str(real.path))

                def forward() -> None:
                    with contextlib.suppress(OSError):
                        while data := made.recv(65536):
                            behind.sendall(data)
                        behind.shutdown(socket.SHUT_WR)

                thread = threading.Thread(target=forward)
                thread.start()
                while data := behind.recv(65536):
                    said.extend(data)
                    made.sendall(data)
                made.shutdown(socket.SHUT_RDWR)
                thread.join()

        with answering(tmp_path / "between", serve) as between:
            session(between)
    return bytes(said)


def test_whatever_is_changed_in_what_a_server_says_ends_typed_and_in_bounded_memory(tmp_path: Path):
    said = recorded(tmp_path)
    with answering(tmp_path / "same", blurting(said)) as address:
        session(address)  # the recording is a session
    short = said[:2000]  # handshake, status and the first headers: where it hurts
    dice = random.Random(4)
    ends = set()
    tracemalloc.start()
    for _ in range(400):
        changed = mutated(short, dice) + said[2000:] if dice.randrange(4) else mutated(said, dice)
        with answering(tmp_path / "sock", blurting(changed)) as address:
            try:
                session(address)
                ends.add("as asked")
            except NbdError as error:
                assert str(error)
                ends.add(type(error).__name__)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 48 * MiB  # the largest hole that may be claimed is of 32 MiB
    assert ends >= {"as asked", "NbdGone", "NbdBroken"}


class Talk:
    """A server that keeps to the protocol until a test says otherwise."""

    def __init__(self, made: socket.socket) -> None:
        self.made = made

    def take(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            piece = self.made.recv(length - len(data))
            if not piece:
                raise OSError
            data += piece
        return data

    def option(self) -> int:
        _, option, length = wire.OPTION.unpack(self.take(wire.OPTION.size))
        self.take(length)
        return option

    def reply(self, option: int, kind: int, data: bytes = b"", *, length: int | None = None) -> None:
        said = len(data) if length is None else length
        self.made.sendall(wire.OPTION_REPLY.pack(wire.OPTION_REPLY_MAGIC, option, kind, said) + data)

    def greet(self, flags: int = 3) -> None:
        self.made.sendall(wire.GREETING.pack(wire.MAGIC, wire.HAVE_OPTION, flags))
        self.take(4)

    def begin(
        self, *, granted: bool = True, size: int = SIZE, blocks: tuple[int, int, int] = (1, 4096, 32 << 20)
    ) -> None:
        self.greet()
        self.reply(self.option(), wire.REP_ACK)
        option = self.option()
        if option == wire.OPT_SET_META_CONTEXT:
            if granted:
                self.reply(option, wire.REP_META_CONTEXT, struct.pack(">I", 1) + ALLOCATION.encode())
            self.reply(option, wire.REP_ACK)
            option = self.option()
        self.reply(option, wire.REP_INFO, struct.pack(">HQH", 0, size, 0x101))
        self.reply(option, wire.REP_INFO, struct.pack(">HIII", 3, *blocks))
        self.reply(option, wire.REP_ACK)

    def request(self) -> int:
        return int(wire.REQUEST.unpack(self.take(wire.REQUEST.size))[3])

    def chunk(self, cookie: int, kind: int, data: bytes = b"", *, flags: int = 0, length: int | None = None) -> None:
        said = len(data) if length is None else length
        self.made.sendall(wire.CHUNK.pack(wire.CHUNK_MAGIC, flags, kind, cookie, said) + data)

    def content(self, cookie: int, offset: int, data: bytes, *, flags: int = 0) -> None:
        self.chunk(cookie, wire.CHUNK_DATA, struct.pack(">Q", offset) + data, flags=flags)


def read(address: UnixAddress, timeout: float = 5) -> bytes:
    connection = Connection(address, "disk", timeout=timeout)
    try:
        content = bytearray(b"\xee" * 4096)
        connection.read_into(4096, memoryview(content))
        return bytes(content)
    finally:
        connection.close()


def lie(kind: str) -> Callable[[socket.socket], None]:
    def serve(made: socket.socket) -> None:
        talk = Talk(made)
        talk.begin()
        cookie = talk.request()
        match kind:
            case "too little":
                talk.content(cookie, 4096, bytes(1000), flags=1)
            case "nothing":
                talk.chunk(cookie, wire.CHUNK_NONE, flags=1)
            case "the same twice":
                talk.content(cookie, 4096, bytes(2048))
                talk.content(cookie, 4097, bytes(2048), flags=1)
            case "before":
                talk.content(cookie, 4095, bytes(2048), flags=1)
            case "behind":
                talk.content(cookie, 4096, bytes(4097), flags=1)
            case "a hole behind":
                talk.chunk(cookie, wire.CHUNK_HOLE, struct.pack(">QI", 4096, 1 << 31), flags=1)
            case "an unknown cookie":
                talk.content(cookie + 1, 4096, bytes(4096), flags=1)
            case "a huge chunk":
                talk.chunk(cookie, wire.CHUNK_DATA, length=0xFFFFFFF0)
            case "a huge error":
                talk.chunk(cookie, wire.CHUNK_ERROR | 1, length=0xFFFFFFF0)
            case "a status":
                talk.chunk(cookie, wire.CHUNK_STATUS, struct.pack(">III", 1, 4096, 0), flags=1)
            case "no end":
                talk.content(cookie, 4096, bytes(4096))
                while True:
                    talk.chunk(cookie, wire.CHUNK_ERROR | 1, struct.pack(">IH", 5, 0))
        while made.recv(4096):
            pass

    return serve


@pytest.mark.parametrize(
    "kind",
    [
        *("too little", "nothing", "the same twice", "before", "behind", "a hole behind", "an unknown cookie"),
        *("a huge chunk", "a huge error", "a status", "no end"),
    ],
)
def test_an_answer_that_is_not_exactly_what_was_asked_for_is_refused(kind: str, tmp_path: Path):
    with answering(tmp_path / "sock", lie(kind)) as address, pytest.raises(NbdBroken):
        read(address)


def test_pieces_in_any_order_make_the_whole(tmp_path: Path):
    def serve(made: socket.socket) -> None:
        talk = Talk(made)
        talk.begin()
        cookie = talk.request()
        talk.content(cookie, 4096 + 3072, b"d" * 1024)
        talk.content(cookie, 4096, b"a" * 1024)
        talk.chunk(cookie, wire.CHUNK_HOLE, struct.pack(">QI", 4096 + 2048, 1024))
        talk.content(cookie, 4096 + 1024, b"b" * 1024)
        talk.chunk(cookie, wire.CHUNK_NONE, flags=1)
        while made.recv(4096):
            pass

    with answering(tmp_path / "sock", serve) as address:
        assert read(address) == b"a" * 1024 + b"b" * 1024 + bytes(1024) + b"d" * 1024


def test_an_error_names_its_place_and_code(tmp_path: Path):
    def serve(made: socket.socket) -> None:
        talk = Talk(made)
        talk.begin()
        data = struct.pack(">IH", 5, 4) + b"bad\n" + struct.pack(">Q", 5000)
        talk.chunk(talk.request(), wire.CHUNK_ERROR_OFFSET, data, flags=1)
        while made.recv(4096):
            pass

    with (
        answering(tmp_path / "sock", serve) as address,
        pytest.raises(NbdReadFailed, match=r"EIO.*bad\? at offset 5000"),
    ):
        read(address)


def test_a_context_that_is_not_granted_is_an_error(tmp_path: Path):
    with (
        answering(tmp_path / "sock", lambda made: Talk(made).begin(granted=False)) as address,
        pytest.raises(ContextMissing, match="base:allocation"),
    ):
        Connection(address, "disk", contexts=(ALLOCATION,))


@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1])
def test_an_impossible_size_is_refused(size: int, tmp_path: Path):
    with (
        answering(tmp_path / "sock", lambda made: Talk(made).begin(size=size)) as address,
        pytest.raises(NbdBroken, match="a size of"),
    ):
        Connection(address, "disk")


@pytest.mark.parametrize("blocks", [(3, 4096, 1 << 25), (0, 4096, 1 << 25), (1 << 20, 1 << 20, 1 << 25), (1, 1, 1)])
def test_impossible_block_sizes_are_refused(blocks: tuple[int, int, int], tmp_path: Path):
    with (
        answering(tmp_path / "sock", lambda made: Talk(made).begin(blocks=blocks)) as address,
        pytest.raises(NbdBroken, match="block sizes"),
    ):
        Connection(address, "disk")


def test_a_block_status_that_leads_nowhere_is_refused(tmp_path: Path):
    def serve(made: socket.socket) -> None:
        talk = Talk(made)
        talk.begin()
        talk.chunk(talk.request(), wire.CHUNK_STATUS, struct.pack(">IIIII", 1, 0, 0, 4096, 0), flags=1)
        while made.recv(4096):
            pass

    with answering(tmp_path / "sock", serve) as address:
        connection = Connection(address, "disk", contexts=(ALLOCATION,))
        with pytest.raises(NbdBroken, match="goes nowhere"):
            list(connection.extents(ALLOCATION))
        connection.close()


def test_answers_to_an_option_that_do_not_end_are_refused(tmp_path: Path):
    def serve(made: socket.socket) -> None:
        talk = Talk(made)
        talk.greet()
        option = talk.option()
        while True:
            talk.reply(option, wire.REP_INFO, bytes(8000))

    with answering(tmp_path / "sock", serve) as address, pytest.raises(NbdBroken, match="do not end"):
        Connection(address, "disk")


def test_a_server_that_sends_drop_by_drop_is_given_up(tmp_path: Path):
    stop = threading.Event()

    def serve(made: socket.socket) -> None:
        for byte in wire.GREETING.pack(wire.MAGIC, wire.HAVE_OPTION, 3):
            made.sendall(bytes([byte]))
            if stop.wait(0.2):
                return

    with answering(tmp_path / "sock", serve) as address:
        with pytest.raises(NbdGone, match="answer within"):
            Connection(address, "disk", timeout=0.5)
        stop.set()


@pytest.mark.parametrize("flags", [0, 2])
def test_an_old_server_is_refused(flags: int, tmp_path: Path):
    def serve(made: socket.socket) -> None:
        Talk(made).greet(flags)

    with answering(tmp_path / "sock", serve) as address, pytest.raises(NbdRefused, match="fixed newstyle"):
        Connection(address, "disk")
