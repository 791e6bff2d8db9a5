from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.store.engine import Database
from tests.fakes.scene import Scene, scene


@pytest.fixture
async def sites(tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Scene]:
    """On SQLite alone; what depends on the database has a test on both."""
    path = tmp_path / "coordinator.db"
    path.write_bytes(sqlite_template.read_bytes())
    database = Database(f"sqlite+aiosqlite:///{path}")
    async with scene(tmp_path / "state", database) as made:
        yield made
    await database.close()
