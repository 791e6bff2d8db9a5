"""Our own NBD client against `nbdcopy` to nowhere, on the same export of qemu-nbd, in turn."""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench import disk, report
from bench.nbd import missing
from hyperv_host_agent.nbd.buffers import Buffers
from hyperv_host_agent.nbd.connection import ALLOCATION, ZERO, Connection
from hyperv_host_agent.nbd.stream import UnixAddress
from twinsite.units import GiB, KiB

PIECE = 512 * KiB
CONNECTIONS = 2


def ours(address: UnixAddress) -> float:
    """Seconds."""
    started = time.monotonic()
    first = Connection(address, "", contexts=(ALLOCATION,))
    data = [extent for extent in first.extents(ALLOCATION) if not extent.flags & ZERO]
    wanted = [(at, min(PIECE, extent.end - at)) for extent in data for at in range(extent.offset, extent.end, PIECE)]
    buffers = Buffers(PIECE)

    def read(connection: Connection, share: list[tuple[int, int]]) -> None:
        for _ in connection.read_many(share, buffers):
            pass
        connection.close()

    connections = [first, *(Connection(address, "") for _ in range(CONNECTIONS - 1))]
    threads = [
        threading.Thread(target=read, args=(connection, wanted[number::CONNECTIONS]))
        for number, connection in enumerate(connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - started


def theirs(address: UnixAddress) -> float:
    started = time.monotonic()
    subprocess.run(["nbdcopy", f"nbd+unix:///?socket={address.path}", "null:"], check=True)
    return time.monotonic() - started


def main(size: int, rounds: int) -> None:
    if absent := missing():
        sys.exit(f"reading is measured with {' and '.join(absent)}: see deploy/system-packages bench")
    with tempfile.TemporaryDirectory(prefix="twinsite-bench-", dir="/var/tmp") as name:
        image, address = Path(name) / "disk.raw", UnixAddress(Path(name) / "sock")
        disk.make(image, size)
        held = image.stat().st_blocks * 512
        server = subprocess.Popen(["qemu-nbd", "-t", "-r", "-e", "8", "-f", "raw", "-k", str(address.path), str(image)])
        try:
            while not address.path.exists():
                time.sleep(0.05)
            taken = [(theirs(address), ours(address)) for _ in range(rounds + 1)][1:]
        finally:
            server.terminate()
            server.wait()
        peer, own = (statistics.median(column) for column in zip(*taken, strict=True))
        report.line("nbd-read", held / 1e9 / own, held / 1e9 / peer, "nbdcopy to null:", "GB/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the disk")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    main(int(given.gib * GiB) // disk.STRIPE * disk.STRIPE, given.rounds)
