"""Clusters by token: a small number stands for 64 KiB of content, its fingerprint and its frame, made once."""

from functools import cache

import zstandard

from twinsite import digest
from twinsite.extents import CLUSTER

ZERO = 0
_COMPRESSOR = zstandard.ZstdCompressor(level=1, write_checksum=True, write_content_size=True)


def content(token: int) -> bytes:
    return token.to_bytes(8, "little") * (CLUSTER // 8)


@cache
def fingerprint(token: int) -> bytes:
    return digest.ZERO_FINGERPRINT if token == ZERO else digest.fingerprint(content(token))


@cache
def frame(token: int) -> bytes:
    return _COMPRESSOR.compress(content(token))
