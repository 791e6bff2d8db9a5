"""Points that can be recovered, told apart without reading each document."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_NOT_RECOVERABLE = b"\x22\x04none"  # the field `consistency` of a types_pb2.Point; no name holds a control character


def upgrade() -> None:
    with op.batch_alter_table("ts_point", schema=None) as batch_op:
        batch_op.add_column(sa.Column("recoverable", sa.Boolean(), server_default=sa.true(), nullable=False))
    point = sa.table(
        "ts_point",
        sa.column("vm_id", sa.Text),
        sa.column("host_id", sa.Text),
        sa.column("cycle", sa.BigInteger),
        sa.column("recoverable", sa.Boolean),
        sa.column("document", sa.LargeBinary),
    )
    connection = op.get_bind()
    for row in connection.execute(sa.select(point.c.vm_id, point.c.host_id, point.c.cycle, point.c.document)).all():
        if _NOT_RECOVERABLE in row.document:
            where = (point.c.vm_id == row.vm_id, point.c.host_id == row.host_id, point.c.cycle == row.cycle)
            connection.execute(sa.update(point).where(*where).values(recoverable=False))
