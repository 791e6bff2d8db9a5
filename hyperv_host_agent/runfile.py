"""Where a serving agent leaves what other commands look for, and the folders they share with it."""

import json
import os
from pathlib import Path
from typing import Any

from twinsite import files


def identity_folder(state: Path) -> Path:
    return state / "identity"


def write(state: Path, address: str, started: float) -> None:
    """Say that the agent serves at `address` (host:port) since `started` (seconds since 1970)."""
    folder = files.private_directory(state / "run")
    content = {"pid": os.getpid(), "addresses": {"replication": address}, "started": started}
    files.replace(folder / "ready.json", json.dumps(content).encode())


def remove(state: Path) -> None:
    (state / "run" / "ready.json").unlink(missing_ok=True)


def running(state: Path) -> dict[str, Any] | None:
    """What was written, if the process that wrote it lives."""
    try:
        told: dict[str, Any] = json.loads((state / "run" / "ready.json").read_bytes())
        os.kill(int(told["pid"]), 0)
    except PermissionError:  # it lives, as another user
        return told
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return told
