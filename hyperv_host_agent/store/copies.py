"""Small documents that a damaged sector must not cost: sealed, written twice, read from whichever is whole."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from hyperv_host_agent.store import files

COPY: Final = ".copy"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Document:
    """One of them, with what it has to say."""

    path: Path
    data: bytes | None  # None: both copies were damaged, and nobody knows any more
    points: tuple[int, ...] = ()  # cycles it concerns

    def problem(self) -> str | None:
        """What is wrong with either copy. A second one that is not there yet is nothing wrong."""
        for one in (self.path, copy_path(self.path)):
            try:
                held = one.read_bytes()
            except FileNotFoundError:
                if one == self.path and self.data is not None:
                    return f"{one.name} is missing"
                continue
            except OSError as error:
                return f"{one.name} cannot be read: {error.strerror}"
            if held != self.data:
                return f"{one.name} is not what was written"
        return None

    def restore(self) -> bool:
        """Write what is damaged or missing anew; whether that could be. Raises OSError."""
        if self.data is None:
            return False
        for one in (self.path, copy_path(self.path)):
            if not _holds(one, self.data):
                files.replace_file(one, self.data)
        return True


def copy_path(path: Path) -> Path:
    """Where the second copy of a file is."""
    return path.with_name(path.name + COPY)


def write(path: Path, document: Mapping[str, object]) -> bytes:
    """Put the document in place of both copies, durably: its bytes. Raises OSError."""
    data = files.seal(document)
    files.replace_file(path, data)
    files.replace_file(copy_path(path), data)
    return data


def remove(path: Path) -> None:
    """Both copies, if they are there; the directory is the caller's to sync. Raises OSError."""
    files.remove_file(copy_path(path))
    files.remove_file(path)


def read(path: Path, decode: Callable[[dict[str, Any]], T]) -> tuple[list[T], list[str]]:
    """What the whole ones of the two say, first the first; and what is wrong with those that are not.

    A document without its second copy is what a crash leaves: nothing is wrong with it. What nobody here would have
    written is damaged too: `decode` raises ValueError, KeyError, TypeError or AttributeError for it.
    """
    documents, problems = [], []
    for one in (path, copy_path(path)):
        try:
            documents.append(decode(files.unseal(one.read_bytes())))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            problems.append(f"{one.name} {error}")
        except (KeyError, TypeError, AttributeError) as error:
            problems.append(f"{one.name} is malformed: {error}")
    return documents, problems


def as_written(document: Mapping[str, Any], again: Mapping[str, object]) -> None:
    """That a document says, word for word, what was understood of it. Raises ValueError."""
    if document != again:
        raise ValueError("is malformed")


def tidy(path: Path) -> None:
    """Remove what a crash left of writing either copy. Raises OSError."""
    for one in (path, copy_path(path)):
        files.remove_file(one.with_name(one.name + ".tmp"))


def exists(path: Path) -> bool:
    """Whether either copy is there."""
    return path.exists() or copy_path(path).exists()


def names(directory: Path, suffix: str = "") -> list[str]:
    """The documents in a directory of which at least one copy is there. Raises OSError."""
    found = {path.name.removesuffix(COPY) for path in directory.iterdir() if not path.name.endswith(".tmp")}
    return sorted(name for name in found if name.endswith(suffix))


def _holds(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except OSError:
        return False
