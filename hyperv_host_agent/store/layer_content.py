"""One layer and what its side file says of it."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Self

from hyperv_host_agent.store.formats import zstd_frame
from hyperv_host_agent.store.formats.qcow2 import Layer, LayerDamaged
from hyperv_host_agent.store.formats.side_file import NEWEST, Entry, SideFile, ZeroRun, side_path
from hyperv_host_agent.store.manifests import LayerRef
from twinsite.digest import fingerprint


class LayerContent:
    """Open for reading; replacing the files meanwhile does not matter. Thread-safe."""

    def __init__(self, directory: Path, ref: LayerRef) -> None:
        """Raises LayerDamaged when a file is not what it should be at first sight."""
        self.ref = ref
        with ExitStack() as stack:
            self.layer = stack.enter_context(closing(Layer(directory / ref.file)))
            self.side = stack.enter_context(closing(SideFile(side_path(directory / ref.file))))
            self._fd = os.open(directory / ref.file, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, self._fd)
            self._stack = stack.pop_all()

    def entries(self, start: int = 0, end: int = NEWEST) -> Iterator[Entry]:
        """Every stored frame of the clusters `start` up to `end`, ascending by cluster, then cycle."""
        return self.side.entries(start, end)

    def zeros(self, start: int = 0, end: int = NEWEST) -> Iterator[ZeroRun]:
        """What cycles made zero."""
        return self.side.zeros(start, end)

    def frame(self, entry: Entry) -> bytes:
        """The frame as it is stored, whatever it is. Raises LayerDamaged when it is cut off or cannot be read."""
        if entry.length > zstd_frame.MAX_FRAME:
            raise LayerDamaged(self.side.path, f"says that {entry.length} bytes hold it", entry.cluster)
        try:
            frame = os.pread(self._fd, entry.length, entry.offset)
        except OverflowError as error:  # a damaged side file may say anything
            raise LayerDamaged(self.side.path, f"names offset {entry.offset}", entry.cluster) from error
        except OSError as error:
            raise LayerDamaged(self.layer.path, f"cannot be read: {error.strerror}", entry.cluster) from error
        if len(frame) != entry.length:
            raise LayerDamaged(self.layer.path, "is cut off", entry.cluster)
        return frame

    def content(self, entry: Entry) -> bytes:
        """The cluster in a frame, checked against its fingerprint. Raises LayerDamaged."""
        try:
            data = zstd_frame.content(self.frame(entry))
        except zstd_frame.BadFrame as error:
            raise LayerDamaged(self.layer.path, error.problem, entry.cluster) from error
        if fingerprint(data) != entry.fingerprint:
            raise LayerDamaged(self.layer.path, "its content does not match its fingerprint", entry.cluster)
        return data

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
