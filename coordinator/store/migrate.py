"""Bring the database to the newest revision. Our tables only: the job engine migrates its own at its start."""

from pathlib import Path
from typing import Final

import sqlalchemy as sa
from alembic import command, util
from alembic.config import Config

from coordinator.store.engine import Database
from twinsite.errors import Precondition

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
    """Apply what is missing, each revision in its own transaction. Raises DatabaseIsNewer."""
    async with database.engine.connect() as connection:
        await connection.run_sync(_upgrade)


def _upgrade(connection: sa.Connection) -> None:
    made = config()
    made.attributes["connection"] = connection
    try:
        command.upgrade(made, "head")
    except util.CommandError as error:  # a revision this program does not know
        raise DatabaseIsNewer(str(error)) from error
