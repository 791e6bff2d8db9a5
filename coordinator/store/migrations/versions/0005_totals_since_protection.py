"""What replication did since a VM is protected, over restarts of its source."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ts_replication_total",
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("cycles", sa.BigInteger(), nullable=False),
        sa.Column("changed_bytes", sa.BigInteger(), nullable=False),
        sa.Column("wire_bytes", sa.BigInteger(), nullable=False),
        sa.Column("earlier_cycles", sa.BigInteger(), nullable=False),
        sa.Column("earlier_changed_bytes", sa.BigInteger(), nullable=False),
        sa.Column("earlier_wire_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("vm_id", name=op.f("pk_ts_replication_total")),
    )
