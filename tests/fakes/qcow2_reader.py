"""A disk as a chain of qcow2 files shows it, read by the format's specification: nothing of the product is in it."""

import struct
from pathlib import Path

import zstandard

_CLUSTER = 1 << 16


def read_disk(path: Path) -> bytes:
    """The whole disk in a qcow2 file and the files it stands on."""
    file = path.read_bytes()
    magic, version, name_at, name_length, bits, size = struct.unpack_from(">4sIQIIQ", file)
    entries, table_at = struct.unpack_from(">IQ", file, 36)
    assert (magic, version, bits) == (b"QFI\xfb", 3, 16)
    below = read_disk(path.parent / file[name_at : name_at + name_length].decode()) if name_at else b""
    disk = bytearray(below[:size].ljust(size, b"\0"))
    for cluster in range(-(-size // _CLUSTER)):
        first, second = divmod(cluster, _CLUSTER // 8)
        assert first < entries
        (table,) = struct.unpack_from(">Q", file, table_at + first * 8)
        table &= 0x00FFFFFFFFFFFE00
        (entry,) = struct.unpack_from(">Q", file, table + second * 8) if table else (0,)
        if not entry:
            continue
        start = cluster * _CLUSTER
        end = min(size, start + _CLUSTER)
        disk[start:end] = _content(file, entry)[: end - start]
    return bytes(disk)


def _content(file: bytes, entry: int) -> bytes:
    if entry >> 62 & 1:  # compressed: 54 bits of offset, then how many more sectors
        at = entry & (1 << 54) - 1
        sectors = (entry >> 54 & 0xFF) + 1
        stored = file[at : at + sectors * 512 - at % 512]
        return zstandard.ZstdDecompressor().decompressobj().decompress(stored)
    if entry & 1:
        return bytes(_CLUSTER)
    at = entry & 0x00FFFFFFFFFFFE00
    return file[at : at + _CLUSTER].ljust(_CLUSTER, b"\0")
