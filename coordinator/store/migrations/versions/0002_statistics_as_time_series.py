"""statistics as time series"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ts_statistic",
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("resolution", sa.Integer(), nullable=False),
        sa.Column("start", sa.BigInteger(), nullable=False),
        sa.Column("cycles", sa.BigInteger(), nullable=False),
        sa.Column("missed", sa.BigInteger(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("changed_bytes", sa.BigInteger(), nullable=False),
        sa.Column("content_bytes", sa.BigInteger(), nullable=False),
        sa.Column("wire_bytes", sa.BigInteger(), nullable=False),
        sa.Column("rpo_max_seconds", sa.Double(), nullable=False),
        sa.Column("seconds_max", sa.Double(), nullable=False),
        sa.Column("seconds_sum", sa.Double(), nullable=False),
        sa.Column("source", sa.Double(), nullable=False),
        sa.Column("compress", sa.Double(), nullable=False),
        sa.Column("network", sa.Double(), nullable=False),
        sa.Column("target", sa.Double(), nullable=False),
        sa.Column("cap", sa.Double(), nullable=False),
        sa.Column("turn", sa.Double(), nullable=False),
        sa.Column("disks", sa.JSON(), nullable=False),
        sa.Column("minutes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("vm_id", "resolution", "start", name=op.f("pk_ts_statistic")),
    )
    with op.batch_alter_table("ts_statistic", schema=None) as batch_op:
        batch_op.create_index("ix_ts_statistic_resolution_start", ["resolution", "start"], unique=False)
