"""Small documents that a damaged sector must not cost: sealed, written twice, read from whichever is whole."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hyperv_host_agent.store import files

COPY: Final = ".copy"


def copy_path(path: Path) -> Path:
    """Where the second copy of a document is."""
    return path.with_name(path.name + COPY)


def write(path: Path, document: Mapping[str, object]) -> None:
    """Put the document in place of both copies, durably. Raises OSError."""
    data = files.seal(document)
    files.replace_file(path, data)
    files.replace_file(copy_path(path), data)


def remove(path: Path) -> None:
    """Both copies, if they are there; the directory is the caller's to sync. Raises OSError."""
    files.remove_file(copy_path(path))
    files.remove_file(path)


def read(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """What the whole ones of the two say, first the first; and what is wrong with those that are not.

    A document without its second copy is what a crash leaves: nothing is wrong with it.
    """
    documents, problems = [], []
    for one in (path, copy_path(path)):
        try:
            documents.append(files.unseal(one.read_bytes()))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            problems.append(f"{one.name} {error}")
    return documents, problems


def names(directory: Path, suffix: str = "") -> list[str]:
    """The documents in a directory of which at least one copy is there. Raises OSError."""
    found = {path.name.removesuffix(COPY) for path in directory.iterdir() if not path.name.endswith(".tmp")}
    return sorted(name for name in found if name.endswith(suffix))
