"""For developers: `python -m coordinator.store.revise "what changes"` writes the next revision; then read it.

It compares the declared tables with what the revisions so far make of an empty database. Triggers and data are not
seen: add them by hand.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

from coordinator.store.engine import Database
from coordinator.store.migrate import config, migrate


async def revise(message: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite+aiosqlite:///{Path(folder) / 'empty.db'}")
        try:
            await migrate(database)
            async with database.engine.connect() as connection:
                await connection.run_sync(_write, message)
        finally:
            await database.close()


def _write(connection: sa.Connection, message: str) -> None:
    made = config()
    made.attributes["connection"] = connection
    head = ScriptDirectory.from_config(made).get_current_head()
    command.revision(made, message=message, autogenerate=True, rev_id=f"{int(head or 0) + 1:04}")


if __name__ == "__main__":
    asyncio.run(revise(sys.argv[1]))
