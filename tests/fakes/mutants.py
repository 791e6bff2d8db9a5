"""Bytes and documents that are nearly what they should be."""

import copy
import random
from collections.abc import Sequence
from typing import Any, Final

NUMBERS: Final = (0, 1, 2, 127, 255, 511, 65535, 65536, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
VALUES: Final = (
    *(None, True, False, 0, -1, 1, 7, 1 << 31, 1 << 63, 1 << 70, 0.5, -1e308, float("1e400")),
    *("", "x", "0", "-1", "../x", "a" * 5000, "\ud800", "é", "000001.qcow2", "999999999999.qcow2", "00", "zz"),
    *([], {}, [[]], [0, 0], [None], [1, 2, 3], {"a": 1}, [["a", 0, 1]], [[0] * 3] * 3),
)


def mutated(data: bytes, dice: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """One to four changes such as damage, a bug or an attacker make."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 4))):
        size = len(changed)
        at = dice.randrange(size + 1)
        kind = dice.randrange(9)
        if kind <= 1 and at < size:
            changed[at] ^= 1 << dice.randrange(8)
        elif kind == 2 and at < size:
            changed[at] = dice.choice((0, 1, 127, 128, 255))
        elif kind == 3:  # a number where one may be
            width = dice.choice((2, 4, 8))
            at -= at % dice.choice((1, width))
            number = dice.choice(NUMBERS) % (1 << 8 * width)
            changed[at : at + width] = number.to_bytes(width, dice.choice(("little", "big")))  # type: ignore[arg-type]
        elif kind == 4:
            del changed[at : at + dice.choice((1, 4, 64, size))]
        elif kind == 5:
            changed[at:at] = dice.randbytes(dice.choice((1, 4, 64)))
        elif kind == 6:
            piece = changed[at : at + dice.choice((1, 16, 200))]
            place = dice.randrange(size + 1)
            changed[place : place + len(piece)] = piece
        elif kind == 7 and others:
            other = dice.choice(others)
            start = dice.randrange(len(other) + 1)
            changed[at:] = other[start:]
        else:
            changed[at : at + 16] = dice.randbytes(16)
    return bytes(changed)


def mutated_in_place(data: bytearray, dice: random.Random, *, first: int = 4096) -> list[tuple[int, bytes]]:
    """Change a large buffer, mostly at its two ends; what was there before, to be put back."""
    undo = []
    for _ in range(dice.choice((1, 1, 2, 3))):
        size = len(data)
        at = dice.choice((dice.randrange(min(first, size)), size - 1 - dice.randrange(min(first, size))))
        if not dice.randrange(3):
            at = dice.randrange(size)
        width = min(dice.choice((1, 1, 2, 4, 8)), size - at)
        undo.append((at, bytes(data[at : at + width])))
        number = dice.choice((dice.choice(NUMBERS), dice.getrandbits(64), data[at] ^ 1 << dice.randrange(8)))
        data[at : at + width] = (number % (1 << 8 * width)).to_bytes(width, "big")
    return undo[::-1]


def mutated_document(document: Any, dice: random.Random) -> Any:
    """A document in which something is missing, is there twice, or is something else."""
    changed = copy.deepcopy(document)
    for _ in range(dice.choice((1, 1, 2, 3))):
        places = list(_places(changed))
        if not places:
            return dice.choice(VALUES)
        holder, key = dice.choice(places)
        kind = dice.randrange(6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        elif kind == 2 and isinstance(holder[key], int):
            holder[key] += dice.choice((-1, 1, 512, 65536, -65536))
        elif kind == 3:
            other, name = dice.choice(places)
            try:
                holder[key] = copy.deepcopy(other[name])
            except (KeyError, IndexError):
                continue
        else:
            holder[key] = copy.deepcopy(dice.choice(VALUES))
    return changed


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    keys: list[Any] = (
        list(value) if isinstance(value, dict) else [*range(len(value))] if isinstance(value, list) else []
    )
    for key in keys:
        found.append((value, key))
        found += _places(value[key])
    return found
