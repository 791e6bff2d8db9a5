"""`twinsite.files` for programs on an event loop: no call of the disk blocks the loop.

What has begun is finished also when the caller is cancelled, and only then the caller goes on: else an older content
could be renamed over a newer one, and a file that is opened too late would stay behind.
"""

import asyncio
import contextlib
import os
import secrets
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import aiofiles
import aiofiles.os

from twinsite import files

T = TypeVar("T")
_fsync = aiofiles.os.wrap(os.fsync)
_sync_directory = aiofiles.os.wrap(files.sync_directory)


async def read(path: Path) -> bytes:
    """Raises OSError."""
    return await _finished(_read(path))


async def replace(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Durable when it returns: temporary file, fsync, rename, fsync of the directory. Raises OSError."""
    await _finished(_replace(path, content, mode))


async def _read(path: Path) -> bytes:
    async with aiofiles.open(path, "rb") as file:
        return await file.read()


async def _replace(path: Path, content: bytes, mode: int) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")

    def private(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_EXCL | os.O_NOFOLLOW, mode)

    try:
        async with aiofiles.open(temporary, "wb", opener=private) as file:
            await file.write(content)
            await file.flush()
            await _fsync(file.fileno())
        await aiofiles.os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    await _sync_directory(path.parent)


async def _finished(work: Coroutine[Any, Any, T]) -> T:
    running = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise
