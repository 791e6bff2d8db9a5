"""Clusters by token: a small number stands for 64 KiB of content, its fingerprint and its frame, made once.

A token that a disk's end cut is a pair: the token and the bytes of it that are left, zeros beyond.
"""

from functools import cache, lru_cache

import zstandard

from hyperv_host_agent.store.formats import zstd_frame
from twinsite import digest
from twinsite.extents import CLUSTER

Token = int | tuple[int, int]
ZERO: Token = 0
_COMPRESSOR = zstandard.ZstdCompressor(level=1, write_checksum=True, write_content_size=True)


def cut(token: Token, length: int) -> Token:
    """The first `length` bytes of it, zeros beyond."""
    if token == ZERO or length >= CLUSTER:
        return token
    if isinstance(token, tuple):
        token, held = token
        length = min(length, held)
    return (token, length) if length else ZERO


def content(token: Token) -> bytes:
    if isinstance(token, tuple):
        token, length = token
        return content(token)[:length].ljust(CLUSTER, b"\0")
    return token.to_bytes(8, "little") * (CLUSTER // 8)


@cache
def fingerprint(token: Token) -> bytes:
    return digest.ZERO_FINGERPRINT if token == ZERO else digest.fingerprint(content(token))


@cache
def frame(token: Token) -> bytes:
    return _COMPRESSOR.compress(content(token))


@lru_cache(1 << 17)
def shown(frame_: bytes) -> bytes:
    """The fingerprint of what a frame really holds."""
    return digest.fingerprint(zstd_frame.content(frame_))
