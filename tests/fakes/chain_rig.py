"""A target host with the real store on disk, for the contract suite and for what only the files can tell."""

from pathlib import Path

from hyperv_host_agent.store.base import Replica
from hyperv_host_agent.store.chain import ChainStore
from hyperv_host_agent.store.formats.qcow2 import ChainReader, Layer, frame_extent
from tests.contracts.replica_store import GiB, Rig
from tests.fakes.boot_clock import BootClock


class ChainRig(Rig):
    """Nothing was synced that the store did not sync, as far as its own records go: it drops what they do not name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.free = GiB
        self.clock = BootClock()
        self.store: ChainStore
        self.power_loss()

    def power_loss(self) -> None:
        self.store = ChainStore(self.root, reserve=1, space=lambda _path: (self.free, 2 * GiB), read=self.clock.read)

    def set_free(self, count: int) -> None:
        self.free = count

    def content(self, replica: Replica, cycle: int, disk: str) -> bytes:
        attached = next(found for found in replica.attach(cycle, "reader") if found.id == disk)
        pinned = next(point.pinned_by for point in replica.points() if point.cycle == cycle)
        with ChainReader(attached.layers) as reader:
            assert reader.size == attached.size
            content = reader.read(0, reader.size)
        assert "reader" in pinned
        replica.detach("reader")
        return content

    def layers(self, disk: str) -> list[Path]:
        """All layer files of a disk, oldest first."""
        return sorted(self.root.glob(f"*/{disk}/*.qcow2"))

    def damage(self, disk: str, cluster: int) -> None:
        for path in reversed(self.layers(disk)):
            layer = Layer(path)
            entry = layer.entry(cluster)
            if entry:
                frame = layer.frame(cluster, entry)
                layer.close()
                offset, _ = frame_extent(entry)
                flip(path, offset + len(frame) // 2)
                return
            layer.close()
        raise AssertionError(f"no layer holds cluster {cluster}")


def flip(path: Path, offset: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)
