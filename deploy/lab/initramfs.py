"""An initramfs as the kernel reads it: a cpio archive in `newc` form, gzip around it."""

import gzip
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath


def write(target: Path, files: Mapping[str, bytes], links: Mapping[str, str]) -> None:
    """Files by path (executable, all of them) and symbolic links; folders are made."""
    with gzip.GzipFile(target, "wb", compresslevel=6, mtime=0) as archive:
        for number, entry in enumerate(_entries(files, links), 1):
            archive.write(_record(number, *entry))
        archive.write(_record(0, "TRAILER!!!", 0, b""))


def _entries(files: Mapping[str, bytes], links: Mapping[str, str]) -> Iterator[tuple[str, int, bytes]]:
    folders = {str(parent) for path in (*files, *links) for parent in PurePosixPath(path).parents}
    for folder in sorted(folders - {"."}):
        yield folder, stat.S_IFDIR | 0o755, b""
    for path, content in sorted(files.items()):
        yield path, stat.S_IFREG | 0o755, content
    for path, target in sorted(links.items()):
        yield path, stat.S_IFLNK | 0o777, target.encode()


def _record(inode: int, name: str, mode: int, content: bytes) -> bytes:
    encoded = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + encoded
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
