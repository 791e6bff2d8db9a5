"""What a serving provider tells the other commands: `run/ready.json`, `run/status.json`."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import structlog

from twinsite import async_files, files
from twinsite.errors import TwinsiteError

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Problem:
    code: str
    message: str
    cause: str
    next_step: str

    @classmethod
    def of(cls, error: TwinsiteError) -> Self:
        return cls(error.code, error.text("public"), error.text("cause"), error.text("next_step"))


@dataclass(frozen=True, slots=True)
class HostLine:
    id: str
    name: str
    connected: bool


@dataclass(frozen=True, slots=True)
class Report:
    coordinator: str  # "connecting" | "connected" | "refused"
    since: float  # seconds since 1970
    problem: Problem | None  # with the coordinator
    fabric_problem: Problem | None
    hosts: tuple[HostLine, ...]

    @classmethod
    def read(cls, state: Path) -> Self | None:
        """None when there is none, or one of another version."""
        try:
            told = json.loads((state / "run" / "status.json").read_bytes())
            return cls(
                told["coordinator"],
                float(told["since"]),
                Problem(**told["problem"]) if told["problem"] else None,
                Problem(**told["fabric_problem"]) if told["fabric_problem"] else None,
                tuple(HostLine(**host) for host in told["hosts"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None


class RunFiles:
    def __init__(self, state: Path) -> None:
        self._folder = files.private_directory(state / "run")

    async def ready(self, addresses: Mapping[str, str], started: float) -> None:
        content = {"pid": os.getpid(), "addresses": dict(addresses), "started": started}
        await async_files.replace(self._folder / "ready.json", json.dumps(content).encode())

    async def report(self, report: Report) -> None:
        """For people only: a disk that is full stops nothing."""
        try:
            await async_files.replace(self._folder / "status.json", json.dumps(asdict(report)).encode())
        except OSError as error:
            _log.error("status_not_written", folder=str(self._folder), reason=error.strerror)

    def remove(self) -> None:
        for name in ("ready.json", "status.json"):
            (self._folder / name).unlink(missing_ok=True)


def running(state: Path) -> dict[str, Any] | None:
    """What `ready.json` says, if the process that wrote it lives."""
    try:
        told: dict[str, Any] = json.loads((state / "run" / "ready.json").read_bytes())
        os.kill(int(told["pid"]), 0)
    except PermissionError:  # it lives, as another user
        return told
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return told
