"""Run by Alembic with the connection `coordinator.store.migrate` hands over."""

import sqlalchemy as sa
from alembic import context

from coordinator.store.migrations.tables import VERSION_TABLE, metadata, ours

connection: sa.Connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    include_name=ours,
    render_as_batch=True,
    transaction_per_migration=True,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
