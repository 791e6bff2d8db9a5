"""Sizes, durations and instants as people and scripts read and write them."""

import re
from datetime import UTC, datetime
from typing import Final

KiB: Final = 1024
MiB: Final = 1024 * KiB
GiB: Final = 1024 * MiB

_RATES: Final[dict[str, float]] = {
    **{f"{prefix}B/s": 1000**power for power, prefix in enumerate(("", "k", "M", "G"))},
    **{f"{prefix}iB/s": 1024**power for power, prefix in enumerate(("", "K", "M", "G")) if power},
    "KB/s": 1000,  # as most people write it
    **{f"{prefix}bit/s": 1000**power / 8 for power, prefix in enumerate(("", "k", "M", "G"))},
}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def size(count: int) -> str:
    """IEC, three significant digits: ``1.4 GiB``."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"


def count(number: int, noun: str) -> str:
    """``1 cluster``, ``3 clusters``; nouns whose plural takes an s."""
    return f"{number} {noun}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """``24s``, ``3m12s``, ``2h05m``, ``3d4h``; the two largest parts."""
    total = int(seconds)
    if total < 60:
        return f"{total}s"
    if total < 3600:
        return f"{total // 60}m{total % 60:02d}s"
    if total < 86400:
        return f"{total // 3600}h{total % 3600 // 60:02d}m"
    return f"{total // 86400}d{total % 86400 // 3600}h"


def span(seconds: int) -> str:
    """Exactly, as `parse_duration` reads it: ``30s``, ``1h30m``, ``7d``; ``0s``."""
    parts, left = [], seconds
    for unit in ("d", "h", "m", "s"):
        count, left = divmod(left, _SECONDS[unit])
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def rfc3339(seconds: float) -> str:
    """An instant (since 1970) in UTC, with milliseconds: ``2027-01-15T08:00:00.250Z``."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_duration(text: str) -> int:
    """Seconds of ``30``, ``30s``, ``5m``, ``1h30m``, ``5d``. Raises ValueError."""
    if text.isascii() and text.isdigit():
        return int(text)
    parts = re.findall(r"([0-9]+)([smhdw])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration such as 30s, 5m, 1h30m or 5d")
    return sum(int(number) * _SECONDS[unit] for number, unit in parts)


def parse_rate(text: str) -> int:
    """Bytes a second of ``10 MB/s``, ``1.5 GB/s``, ``512 KiB/s``, ``100 Mbit/s``. Raises ValueError."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+/s)", text.strip())
    if found is None or found[2] not in _RATES:
        raise ValueError(f"{text!r} is not a rate such as 10 MB/s, 512 KiB/s or 100 Mbit/s")
    return round(float(found[1]) * _RATES[found[2]])


def rate(bytes_per_second: int) -> str:
    """The shortest that reads back the same: ``10 MB/s``, ``512 KiB/s``, ``12345 B/s``."""
    for unit in ("GB/s", "GiB/s", "MB/s", "MiB/s", "kB/s", "KiB/s"):
        step = int(_RATES[unit])
        if bytes_per_second and bytes_per_second * 10 % step == 0 and bytes_per_second >= step:
            return f"{bytes_per_second / step:.1f}".removesuffix(".0") + f" {unit}"
    return f"{bytes_per_second} B/s"
