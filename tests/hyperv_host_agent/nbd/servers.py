"""Real NBD servers, gone when the test is."""

import contextlib
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperv_host_agent.nbd.stream import Address, TcpAddress, UnixAddress


def need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed: see deploy/system-packages")


@contextlib.contextmanager
def running(*command: str, ready: Address) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        _wait(process, ready)
        yield process
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def qemu_nbd(image: Path, socket_path: Path, *options: str, export: str = "disk") -> Iterator[UnixAddress]:
    need("qemu-nbd")
    address = UnixAddress(socket_path)
    command = ("qemu-nbd", "-t", "-e", "8", "-k", str(socket_path), "-x", export, *options, str(image))
    with running(*command, ready=address):
        yield address


def create(image: Path, size: int, form: str = "qcow2") -> None:
    subprocess.run(["qemu-img", "create", "-q", "-f", form, str(image), str(size)], check=True)


def qemu_io(image: Path, *commands: str, form: str = "qcow2") -> None:
    options = [word for command in commands for word in ("-c", command)]
    subprocess.run(["qemu-io", "-f", form, *options, str(image)], check=True, stdout=subprocess.DEVNULL)


def bitmaps(image: Path) -> list[str]:
    command = ["qemu-img", "info", "--output=json", str(image)]
    described = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return [bitmap["name"] for bitmap in described["format-specific"]["data"].get("bitmaps", ())]


def _wait(process: subprocess.Popen[bytes], address: Address) -> None:
    for _ in range(1000):
        with contextlib.suppress(OSError):
            if isinstance(address, TcpAddress):
                socket.create_connection((address.host, address.port), 1).close()
                return
            with socket.socket(socket.AF_UNIX) as made:
                made.connect(str(address.path))
                return
        assert process.poll() is None, "the server ended"
        threading.Event().wait(0.01)
    raise AssertionError("the server does not listen")
