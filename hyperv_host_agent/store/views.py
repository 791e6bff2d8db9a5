"""Views: small layers over a pack that show a point inside it, built when the point is attached.

A view holds the clusters that came after its point as they were at the point. It stands on the pack, so the pack must
stay as it is while the view exists; the pins of the point see to that.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from hyperv_host_agent.store import files
from hyperv_host_agent.store.formats.qcow2 import Layer, LayerDamaged
from hyperv_host_agent.store.formats.qcow2_writer import LayerWriter
from hyperv_host_agent.store.formats.side_file import WINDOW
from hyperv_host_agent.store.manifests import LayerRef
from hyperv_host_agent.store.packed_point import PackedPoint
from twinsite.extents import clusters, runs

PARTIAL = ".partial"


def view_name(at: int) -> str:
    """The file, in its disk's directory, that shows the disk as of a cycle."""
    return f"{at:06}.view.qcow2"


def build(directory: Path, stack: Sequence[LayerRef], at: int, size: int, room: Callable[[int], None]) -> None:
    """Make the view of a disk of `size` bytes as of cycle `at`, durably, in place of one that is there.

    `room` is asked before so many bytes are written and raises NoSpace. Raises LayerDamaged, OSError; nothing stays.
    """
    final = directory / view_name(at)
    partial = final.with_name(final.name + PARTIAL)
    with ExitStack() as unless_whole:
        unless_whole.callback(files.remove_file, partial)
        with closing(PackedPoint(directory, stack, at, size)) as point:
            fd = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                _fill(LayerWriter(fd, size), point, stack[-1].file, room)
            finally:
                os.close(fd)
        partial.rename(final)
        files.sync_directory(directory)
        unless_whole.pop_all()


def is_sound(directory: Path, pack: LayerRef, at: int, size: int) -> bool:
    """Whether a view is there and whole, of this size and over this pack."""
    try:
        with closing(Layer(directory / view_name(at))) as layer:
            return (layer.size, layer.header.backing) == (size, pack.file)
    except LayerDamaged:
        return False


def _fill(writer: LayerWriter, point: PackedPoint, pack: str, room: Callable[[int], None]) -> None:
    for start in range(0, clusters(point.size), WINDOW):
        differing = point.differing(start, start + WINDOW)
        zeros: list[int] = []
        for cluster in sorted(differing):
            frame = point.frame(cluster, differing[cluster])
            if frame:
                room(len(frame))
                writer.write(frame)
                writer.record([cluster], [len(frame)])
            else:
                zeros.append(cluster)
        for run in runs(zeros):
            writer.record_zeros(run)
    room(writer.tables_bytes())
    writer.finish(pack)
