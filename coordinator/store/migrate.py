"""Bring the database to the newest revision. Our tables only: the job engine migrates its own at its start."""

import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command, util
from alembic.config import Config

from coordinator.store.engine import Database
from twinsite.clock import SystemClock
from twinsite.errors import Precondition

_KEY: Final = 7003  # pg advisory lock; 7001 and 7002 are the executor's and the audit chain's
_SCRIPTS: Final = Path(__file__).parent / "migrations"


class DatabaseIsNewer(Precondition):
    public = "the database was made by a newer coordinator"
    cause = "{error.detail}"
    still_works = "nothing was changed"
    next_step = "start the newer coordinator, or restore the backup made before the upgrade"

    def __init__(self, detail: str) -> None:
        self.detail = detail


def config() -> Config:
    made = Config()
    made.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    return made


async def migrate(database: Database) -> None:
    """Apply what is missing, each revision in its own transaction; two programs do it one after the other.

    Raises DatabaseIsNewer.
    """
    async with contextlib.AsyncExitStack() as stack:
        if database.embedded:
            await stack.enter_async_context(_file_lock(Path(str(sa.make_url(database.url).database))))
        async with database.engine.connect() as connection:
            if not database.embedded:  # of this session: gone with the connection
                await connection.execute(sa.select(sa.func.pg_advisory_lock(_KEY)))
                await connection.commit()
            try:
                await connection.run_sync(_upgrade)
            finally:
                await connection.rollback()
                if not database.embedded:
                    await connection.execute(sa.select(sa.func.pg_advisory_unlock(_KEY)))
                    await connection.commit()


@contextlib.asynccontextmanager
async def _file_lock(path: Path) -> AsyncIterator[None]:
    descriptor = os.open(path.with_name(path.name + ".migrating"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        while not _locked(descriptor):  # another program migrates, which takes a second
            await SystemClock().sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _upgrade(connection: sa.Connection) -> None:
    made = config()
    made.attributes["connection"] = connection
    try:
        command.upgrade(made, "head")
    except util.CommandError as error:  # a revision this program does not know
        raise DatabaseIsNewer(str(error)) from error
