"""Policies with tiers and rates; initial replication later, or on media."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("ts_pair", schema=None) as batch_op:
        batch_op.add_column(sa.Column("tiers", sa.JSON(), server_default="[]", nullable=False))
        batch_op.add_column(sa.Column("vm_rates", sa.JSON(), server_default="[]", nullable=False))
        batch_op.add_column(sa.Column("link_rates", sa.JSON(), server_default="[]", nullable=False))
        batch_op.add_column(sa.Column("application_hours", sa.Integer(), server_default="0", nullable=False))

    with op.batch_alter_table("ts_protected", schema=None) as batch_op:
        batch_op.add_column(sa.Column("offline", sa.Boolean(), server_default=sa.false(), nullable=False))
        batch_op.add_column(sa.Column("initial_start", sa.Double(), server_default="0", nullable=False))
        batch_op.add_column(sa.Column("existing", sa.JSON(), server_default="[]", nullable=False))
