"""What a power loss may leave: a program's system calls are recorded, then replayed with what was not synced in doubt.

The file system promises no more than POSIX: a file's content is durable after its own fsync, a name after the fsync of
its directory; until then any part of the writes and of the names may be there, torn at sectors.
"""

import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.strace import require_strace

_CALLS = "openat,write,pwrite64,fsync,fdatasync,rename,ftruncate,unlink"
_LINE = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_FD = re.compile(r"^(\d+)<((?:\\x[0-9a-f]{2})*|[^>]*)>")
_SECTOR = 512


@dataclass
class Call:
    name: str
    path: Path
    other: Path | None = None  # rename: the new name
    data: bytes = b""
    number: int = 0  # offset, or length
    flags: str = ""


@dataclass
class _File:
    durable: bytes = b""
    pending: list[Call] = field(default_factory=list)


@dataclass
class _Directory:
    durable: dict[str, _File] = field(default_factory=dict)
    now: dict[str, _File] = field(default_factory=dict)
    pending: list[tuple[str, str, _File | None]] = field(default_factory=list)  # name that goes, name that comes


def record(script: Path, arguments: list[str], root: Path, log: Path) -> list[Call]:
    """Run a program to its end: its calls on files below `root`, and what it wrote to stdout between them."""
    command = [require_strace(), "-f", "-y", "-xx", "-s", "100000000", "-e", f"trace={_CALLS}", "-o", str(log)]
    subprocess.run([*command, sys.executable, str(script), *arguments], check=True, capture_output=True, timeout=60)
    calls = []
    for line in log.read_text().splitlines():
        found = _LINE.match(line)
        if not found or int(found[3]) < 0:
            continue
        call = _parse(found[1], found[2])
        if call.flags == "stdout" or call.path.is_relative_to(root):
            calls.append(call)
    return calls


def _parse(name: str, arguments: str) -> Call:
    texts = [_unescape(text) for text in _TEXT.findall(arguments)]
    fd = _FD.match(arguments)
    if fd:
        path = Path(_unescape(fd[2]).decode(errors="replace"))
        tail = re.sub(r".*\", ", "", arguments).split(", ")
        if name == "write":
            return Call(name, path, data=texts[0] if texts else b"", flags="stdout" if fd[1] == "1" else "")
        if name == "pwrite64":
            return Call(name, path, data=texts[0], number=int(tail[-1]))
        return Call(name, path, number=int(tail[-1]) if name == "ftruncate" else 0)
    path = Path(texts[0].decode())
    other = Path(texts[1].decode()) if name == "rename" else None
    return Call(name, path, other, flags=arguments if name == "openat" else "")


def _unescape(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", "")) if text.startswith("\\x") else text.encode()


class Disk:
    """The directory tree below a root, durable as it is now, and what calls do to it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._directories: dict[Path, _Directory] = {}
        for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
            found = {path.name: _File(path.read_bytes()) for path in folder.iterdir() if path.is_file()}
            self._directories[folder] = _Directory(dict(found), dict(found))

    def apply(self, call: Call) -> None:
        if call.path in self._directories:
            if call.name == "fsync":
                directory = self._directories[call.path]
                directory.durable = dict(directory.now)
                directory.pending.clear()
            return
        directory, name = self._directories[call.path.parent], call.path.name
        if call.name == "openat":
            if "O_CREAT" in call.flags and name not in directory.now:
                directory.now[name] = _File()
                directory.pending.append(("", name, directory.now[name]))
            if "O_TRUNC" in call.flags:
                directory.now[name].pending.append(Call("ftruncate", call.path))
        elif call.name == "rename":
            assert call.other is not None
            assert call.other.parent == call.path.parent
            file = directory.now.pop(name)
            directory.now[call.other.name] = file
            directory.pending.append((name, call.other.name, file))
        elif call.name == "unlink":
            del directory.now[name]
            directory.pending.append((name, "", None))
        elif call.name in {"fsync", "fdatasync"}:
            file = directory.now[name]
            for pending in file.pending:
                file.durable = _applied(file.durable, pending)
            file.pending.clear()
        else:
            directory.now[name].pending.append(call)

    def states(self, target: Path, seeds: int) -> Iterator[None]:
        """Write to `target` what may be left: nothing of what is in doubt, all of it, and `seeds` mixtures."""
        for choice in range(seeds + 2):
            dice = random.Random(choice)
            chance = {0: 0.0, 1: 1.0}.get(choice, dice.choice((0.2, 0.5, 0.8)))
            for folder, directory in self._directories.items():
                names = dict(directory.durable)
                for gone, came, file in directory.pending:
                    if dice.random() < chance:
                        names.pop(gone, None)
                        if file is not None:
                            names[came] = file
                place = target / folder.relative_to(self._root)
                place.mkdir(parents=True, exist_ok=True)
                for old in [path for path in place.iterdir() if path.is_file()]:
                    old.unlink()
                for name, file in names.items():
                    (place / name).write_bytes(_left(file, dice, chance))
            yield


def _left(file: _File, dice: random.Random, chance: float) -> bytes:
    content = file.durable
    for call in file.pending:
        if dice.random() < chance:
            content = _applied(content, call)
        elif chance and call.data and dice.random() < chance:  # torn
            cut = dice.randrange(len(call.data)) // _SECTOR * _SECTOR
            content = _applied(content, Call(call.name, call.path, data=call.data[:cut], number=call.number))
    return content


def _applied(content: bytes, call: Call) -> bytes:
    if call.name == "ftruncate":
        return content[: call.number].ljust(call.number, b"\0")
    if not call.data:
        return content
    return content[: call.number].ljust(call.number, b"\0") + call.data + content[call.number + len(call.data) :]
