"""A state file written from an event loop is there whole or not at all."""

import asyncio
from pathlib import Path

import pytest

from twinsite import async_files


async def test_content_is_replaced_for_its_owner_alone_and_nothing_else_is_left(tmp_path: Path):
    path = tmp_path / "state.json"
    await async_files.replace(path, b"old")
    await async_files.replace(path, b"new")
    assert await async_files.read(path) == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


async def test_what_cannot_be_put_in_place_leaves_no_trace(tmp_path: Path):
    path = tmp_path / "state.json"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        await async_files.replace(path, b"new")
    assert list(tmp_path.iterdir()) == [path]


async def test_who_is_cancelled_leaves_the_old_content_or_the_new_one(tmp_path: Path):
    path = tmp_path / "state.json"
    old, new = b"old" * 100_000, b"new" * 100_000
    for steps in range(12):
        await async_files.replace(path, old)
        writing = asyncio.ensure_future(async_files.replace(path, new))
        for _ in range(steps):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait([writing])
        assert await async_files.read(path) in (old, new)
        assert list(tmp_path.iterdir()) == [path], steps
