"""The fabric as a TOML file that an administrator edits."""

import asyncio
import contextlib
from pathlib import Path

import structlog

from provider_agent.vmm.base import Fabric, Reading
from twinsite import files, settings

_log = structlog.get_logger()
_Stamp = tuple[int, int, int] | None


class FabricFile:
    """Read again when it changes. `kept` holds the last good content, so that a restart survives a broken edit."""

    def __init__(self, path: Path, kept: Path) -> None:
        self._path = path
        self._kept = kept
        self._seen: _Stamp = None
        self._reading: Reading | None = None

    async def read(self) -> Reading:
        return await asyncio.to_thread(self._read)

    def _read(self) -> Reading:
        stamp = self._stamp()
        if self._reading is not None and stamp == self._seen:
            return self._reading
        try:
            fabric = load(self._path)
        except settings.SettingsError as error:
            before = self._reading.fabric if self._reading is not None else self._last_good()
            if before is None:
                raise
            _log.error("fabric_unreadable", problem=str(error), next_step=error.text("next_step"))
            self._reading = Reading(before, error)
        else:
            if self._reading is not None:
                _log.info("fabric_read", clouds=len(fabric.clouds), networks=len(fabric.networks))
            files.replace(self._kept, self._path.read_bytes())
            self._reading = Reading(fabric)
        # The stamp from before reading: an edit made meanwhile is seen the next time.
        self._seen = stamp
        return self._reading

    def _stamp(self) -> _Stamp:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _last_good(self) -> Fabric | None:
        with contextlib.suppress(settings.SettingsError):
            return load(self._kept)
        return None


def load(path: Path) -> Fabric:
    """Raises SettingsError with file, key and a suggestion."""
    if not path.exists():
        raise settings.SettingsError(
            str(path),
            "there is no such fabric file",
            "write it as deploy/config/fabric.toml shows, or correct `fabric`",
        )
    return settings.load(Fabric, path, program="fabric", environment={})
