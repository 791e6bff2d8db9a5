"""How the C allocator treats the buffers of a transfer: megabytes that come and go hundreds of times a second."""

import contextlib
import ctypes
from typing import Final

from twinsite.units import MiB

# From <malloc.h> of glibc; another C library has none of it, and needs none.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_MMAP_MOST: Final = 32 * MiB  # glibc takes no more on 64-bit machines
_KEPT: Final = 64 * MiB


def keep_buffers() -> None:
    """Freed buffers stay with this process instead of going back to the kernel, up to 64 MiB an arena.

    By default every buffer of over 128 KiB is mapped, its pages cleared, used once and unmapped again: a fifth of the
    processor time of both agents during a copy. Called once, at the start.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _MMAP_MOST)
        libc.mallopt(_TRIM_THRESHOLD, _KEPT)
