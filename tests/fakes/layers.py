"""Recovery points as files, made straight with the layer writer."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from hyperv_host_agent.store.formats import zstd_frame
from hyperv_host_agent.store.formats.qcow2_writer import LayerWriter
from twinsite.digest import is_zero
from twinsite.extents import CLUSTER, Run


def write_layer(path: Path, size: int, content: Mapping[int, bytes], backing: str | None) -> None:
    """A layer that holds these clusters; all zeros become a zero cluster."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        writer = LayerWriter(file, size)
        for cluster, data in sorted(content.items()):
            if is_zero(data):
                writer.record_zeros(Run(cluster, 1))
                continue
            frame = zstd_frame.raw(data)
            writer.write(frame)
            writer.record([cluster], [len(frame)])
        writer.finish(backing)
    finally:
        os.close(file)


def chain(folder: Path, states: Sequence[bytes]) -> tuple[Path, ...]:
    """A chain whose layers show these contents of one disk, oldest first."""
    paths: list[Path] = []
    before = b""
    for number, state in enumerate(states):
        places = range(0, len(state), CLUSTER)
        changed = {
            at // CLUSTER: state[at : at + CLUSTER]
            for at in places
            if state[at : at + CLUSTER] != before[at : at + CLUSTER].ljust(len(state[at : at + CLUSTER]), b"\0")
        }
        path = folder / f"{number:06}.qcow2"
        write_layer(path, len(state), changed, paths[-1].name if paths else None)
        paths.append(path)
        before = state
    return tuple(paths)
