"""The fingerprint of a cluster: BLAKE3 cut to 16 bytes. Cryptographic, because a guest chooses the content."""

from typing import Final

from blake3 import blake3
from xxhash import xxh3_128_digest

from twinsite.extents import CLUSTER

FINGERPRINT_BYTES: Final = 16
ZERO_FINGERPRINT: Final = bytes(
    FINGERPRINT_BYTES
)  # stands for a cluster of zeros; a real hash of 128 zero bits has no preimage known
CHAIN_START: Final = bytes(16)  # the chain digest before the first batch of a cycle
_ZEROS: Final = bytes(CLUSTER)


def is_zero(data: bytes | memoryview) -> bool:
    """Whether a cluster (or a partial last one) holds only zeros."""
    if data and (data[0] or data[-1]):
        return False  # nearly all content: not worth the copy below
    # A memoryview compares item by item (0.9 GB/s); bytes compare with memcmp, copy included (15 GB/s).
    return bytes(data) == _ZEROS[: len(data)]


def fingerprint(data: bytes | memoryview) -> bytes:
    """Of one cluster's content; a partial last cluster is padded with zeros to CLUSTER first, as it is in its frame."""
    if len(data) < CLUSTER:
        data = bytes(data) + bytes(CLUSTER - len(data))
    return blake3(data).digest(length=FINGERPRINT_BYTES)


def chain(previous: bytes, *body: bytes | memoryview) -> bytes:
    """The digest over a cycle's batches so far: of the one before and this batch's header and payload as sent.

    It finds what fell over in memory on the way; TLS keeps people out, and every cluster's fingerprint is
    cryptographic. So the megabytes go through XXH3, five times as fast as BLAKE3.
    """
    return chained(previous, *map(link, body))


def link(part: bytes | memoryview) -> bytes:
    """What `chained` wants of a part of a batch; it does not depend on the batches before."""
    return xxh3_128_digest(part)


def chained(previous: bytes, *links: bytes) -> bytes:
    """As `chain`, of parts whose links were made before."""
    return blake3(b"".join((previous, *links))).digest(length=FINGERPRINT_BYTES)
