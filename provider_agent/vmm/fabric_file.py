"""The fabric as a TOML file that an administrator edits."""

import contextlib
from pathlib import Path
from typing import Final

import aiofiles.os
import structlog

from provider_agent.vmm.base import Fabric, Reading
from twinsite import async_files, settings

_log = structlog.get_logger()
_EXAMPLE: Final = "write it as deploy/config/fabric.toml shows, or correct `fabric`"
_Stamp = tuple[int, int, int] | None


class FabricFile:
    """Read again when it changes. `kept` holds the last good content, so that a restart survives a broken edit."""

    def __init__(self, path: Path, kept: Path) -> None:
        self._path = path
        self._kept = kept
        self._seen: _Stamp = None
        self._reading: Reading | None = None

    async def read(self) -> Reading:
        # The stamp from before reading: an edit made meanwhile is seen the next time.
        stamp = await self._stamp()
        if self._reading is not None and stamp == self._seen:
            return self._reading
        try:
            content = await _content(self._path)
            fabric = settings.parse(Fabric, content, str(self._path))
        except settings.SettingsError as error:
            before = self._reading.fabric if self._reading is not None else await self._last_good()
            if before is None:
                raise
            _log.error("fabric_unreadable", problem=str(error), next_step=error.text("next_step"))
            self._reading = Reading(before, error)
        else:
            if self._reading is not None:
                _log.info("fabric_read", clouds=len(fabric.clouds), networks=len(fabric.networks))
            self._reading = Reading(fabric)
            await self._keep(content)
        self._seen = stamp
        return self._reading

    async def _keep(self, content: bytes) -> None:
        try:
            await async_files.replace(self._kept, content)
        except OSError as error:  # only a restart with a broken file would miss it
            _log.error("fabric_not_kept", path=str(self._kept), reason=error.strerror)

    async def _stamp(self) -> _Stamp:
        try:
            status = await aiofiles.os.stat(self._path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    async def _last_good(self) -> Fabric | None:
        with contextlib.suppress(settings.SettingsError):
            return settings.parse(Fabric, await _content(self._kept), str(self._kept))
        return None


def load(path: Path) -> Fabric:
    """Raises SettingsError with file, key and a suggestion."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from None
    return settings.parse(Fabric, content, str(path))


async def _content(path: Path) -> bytes:
    try:
        return await async_files.read(path)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> settings.SettingsError:
    if isinstance(error, FileNotFoundError):
        return settings.SettingsError(str(path), "there is no such fabric file", _EXAMPLE)
    advice = "give the provider's user read permission, or correct `fabric`"
    return settings.SettingsError(str(path), f"cannot be read: {error.strerror}", advice)
