from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coordinator.store.engine import Database
from tests.fakes.identity_plane import IdentityPlane, real_time


@pytest.fixture
async def plane(tmp_path: Path, database: Database) -> AsyncIterator[IdentityPlane]:
    async with IdentityPlane.started(tmp_path / "state", database, real_time()) as started:
        yield started
