"""The disk the benchmarks copy: half zero, 30 % real files, 20 % noise, in stripes of 16 MiB."""

import os
from collections.abc import Iterator
from pathlib import Path

from twinsite.units import MiB

STRIPE = 16 * MiB
_PATTERN = "zfznfzfznz"  # of ten stripes five are holes, three files, two noise


def make(path: Path, size: int) -> None:
    real = _files(Path("/usr"))
    with path.open("wb") as file:
        file.truncate(size)
        for number in range(size // STRIPE):
            kind = _PATTERN[number % len(_PATTERN)]
            if kind == "z":
                continue
            file.seek(number * STRIPE)
            file.write(os.urandom(STRIPE) if kind == "n" else _take(real, STRIPE))


def _files(root: Path) -> Iterator[bytes]:
    """Their contents, padded to 4 KiB as a file system does; over and over."""
    while True:
        for folder, _, names in os.walk(root):
            for name in sorted(names):
                path = Path(folder, name)
                if path.is_file() and not path.is_symlink():
                    content = path.read_bytes()
                    yield content + bytes(-len(content) % 4096)


def _take(real: Iterator[bytes], count: int) -> bytes:
    gathered = bytearray()
    while len(gathered) < count:
        gathered += next(real)
    return bytes(gathered[:count])
