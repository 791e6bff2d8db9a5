"""The fingerprint of a cluster: BLAKE3 cut to 16 bytes. Cryptographic, because a guest chooses the content."""

from typing import Final

from blake3 import blake3

from twinsite.extents import CLUSTER

FINGERPRINT_BYTES: Final = 16
ZERO_FINGERPRINT: Final = bytes(
    FINGERPRINT_BYTES
)  # stands for a cluster of zeros; a real hash of 128 zero bits has no preimage known
_ZEROS: Final = bytes(CLUSTER)


def is_zero(data: bytes | memoryview) -> bool:
    """Whether a cluster (or a partial last one) holds only zeros."""
    return data == _ZEROS[: len(data)]


def fingerprint(data: bytes | memoryview) -> bytes:
    """Of one cluster's content; a partial last cluster is padded with zeros to CLUSTER first, as it is in its frame."""
    if len(data) < CLUSTER:
        data = bytes(data) + bytes(CLUSTER - len(data))
    return blake3(data).digest(length=FINGERPRINT_BYTES)
