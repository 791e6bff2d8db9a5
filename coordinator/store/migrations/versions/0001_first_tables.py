"""First tables. Generated from the declared ones; what Alembic does not know, the audit log's triggers, stands last."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

APPEND_ONLY = {
    "sqlite": (
        """CREATE TRIGGER ts_audit_no_update BEFORE UPDATE ON ts_audit
        BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
        """CREATE TRIGGER ts_audit_no_delete BEFORE DELETE ON ts_audit
        BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END""",
    ),
    "postgresql": (
        """CREATE FUNCTION ts_audit_refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'the audit log is append-only'; END $$""",
        """CREATE TRIGGER ts_audit_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON ts_audit
        FOR EACH STATEMENT EXECUTE FUNCTION ts_audit_refuse()""",
    ),
}


def upgrade() -> None:
    op.create_table(
        "ts_assignments",
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("host_id", name=op.f("pk_ts_assignments")),
    )
    op.create_table(
        "ts_audit",
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("facts", sa.JSON(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("prev", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("sequence", name=op.f("pk_ts_audit")),
    )
    with op.batch_alter_table("ts_audit", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ts_audit_actor"), ["actor"], unique=False)

    op.create_table(
        "ts_cloud",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("last_seen", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ts_cloud")),
        sa.UniqueConstraint("server_id", "name", name=op.f("uq_ts_cloud_server_id")),
    )
    with op.batch_alter_table("ts_cloud", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ts_cloud_server_id"), ["server_id"], unique=False)

    op.create_table(
        "ts_fence",
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("vm_name", sa.Text(), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("vm_id", "host_id", name=op.f("pk_ts_fence")),
    )
    op.create_table(
        "ts_high_water",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_ts_high_water")),
    )
    op.create_table(
        "ts_inventory_host",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("cloud", sa.Text(), nullable=False),
        sa.Column("host_group", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("connected", sa.Boolean(), nullable=False),
        sa.Column("agent_version", sa.Text(), nullable=False),
        sa.Column("hypervisor", sa.Text(), nullable=False),
        sa.Column("replication_address", sa.Text(), nullable=False),
        sa.Column("free_bytes", sa.BigInteger(), nullable=False),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("last_seen", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ts_inventory_host")),
    )
    with op.batch_alter_table("ts_inventory_host", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ts_inventory_host_server_id"), ["server_id"], unique=False)

    op.create_table(
        "ts_job",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("result", sa.JSON(), nullable=False),
        sa.Column("error", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ts_job")),
        sa.UniqueConstraint("created_by", "request_id", name=op.f("uq_ts_job_created_by")),
    )
    with op.batch_alter_table("ts_job", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ts_job_created"), ["created"], unique=False)
        batch_op.create_index(batch_op.f("ix_ts_job_state"), ["state"], unique=False)
        batch_op.create_index(batch_op.f("ix_ts_job_target"), ["target"], unique=False)

    op.create_table(
        "ts_leftover",
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("vm_id", "host_id", name=op.f("pk_ts_leftover")),
    )
    op.create_table(
        "ts_machine",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("last_seen", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", "host_id", name=op.f("pk_ts_machine")),
    )
    op.create_table(
        "ts_network",
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("last_seen", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("server_id", "name", name=op.f("pk_ts_network")),
    )
    op.create_table(
        "ts_pair",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("source_cloud", sa.Text(), nullable=False),
        sa.Column("target_cloud", sa.Text(), nullable=False),
        sa.Column("frequency_seconds", sa.Integer(), nullable=False),
        sa.Column("additional_points", sa.Integer(), nullable=False),
        sa.Column("compression", sa.Boolean(), nullable=False),
        sa.Column("delete_replica", sa.Boolean(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ts_pair")),
    )
    op.create_table(
        "ts_point",
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("cycle", sa.BigInteger(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("vm_id", "host_id", "cycle", name=op.f("pk_ts_point")),
    )
    op.create_table(
        "ts_registration_key",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.Text(), nullable=False),
        sa.Column("issued", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("revoked", sa.Double(), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ts_registration_key")),
    )
    op.create_table(
        "ts_replication_status",
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("received", sa.Double(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("vm_id", "host_id", name=op.f("pk_ts_replication_status")),
    )
    op.create_table(
        "ts_request",
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("response", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "method", "actor", name=op.f("pk_ts_request")),
    )
    with op.batch_alter_table("ts_request", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ts_request_at"), ["at"], unique=False)

    op.create_table(
        "ts_server",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("live_name", sa.Text(), nullable=True),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("spki", sa.Text(), nullable=False),
        sa.Column("chain", sa.LargeBinary(), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("registered", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("agent_version", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("pending_serial", sa.Text(), nullable=False),
        sa.Column("pending_spki", sa.Text(), nullable=False),
        sa.Column("pending_chain", sa.LargeBinary(), nullable=False),
        sa.Column("pending_expires", sa.Double(), nullable=False),
        sa.Column("previous_serial", sa.Text(), nullable=False),
        sa.Column("previous_spki", sa.Text(), nullable=False),
        sa.Column("previous_until", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ts_server")),
        sa.UniqueConstraint("live_name", name=op.f("uq_ts_server_live_name")),
    )
    op.create_table(
        "ts_server_link",
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("connected", sa.Boolean(), nullable=False),
        sa.Column("agent_version", sa.Text(), nullable=False),
        sa.Column("inventory_version", sa.BigInteger(), nullable=False),
        sa.Column("since", sa.Double(), nullable=False),
        sa.Column("last_seen", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("server_id", name=op.f("pk_ts_server_link")),
    )
    op.create_table(
        "ts_storage_classification",
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("document", sa.LargeBinary(), nullable=False),
        sa.Column("last_seen", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("server_id", "name", name=op.f("pk_ts_storage_classification")),
    )
    op.create_table(
        "ts_test_failover",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("host_id", sa.Text(), nullable=False),
        sa.Column("cycle", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ts_test_failover")),
    )
    with op.batch_alter_table("ts_test_failover", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ts_test_failover_vm_id"), ["vm_id"], unique=False)

    op.create_table(
        "ts_token",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("secret_sha256", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("thumbprint", sa.Text(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ts_token")),
    )
    with op.batch_alter_table("ts_token", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ts_token_holder"), ["holder"], unique=False)

    op.create_table(
        "ts_user",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("password", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ts_user")),
        sa.UniqueConstraint("name", name=op.f("uq_ts_user_name")),
    )
    op.create_table(
        "ts_vault",
        sa.Column("only", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("only", name=op.f("pk_ts_vault")),
    )
    op.create_table(
        "ts_vm_term",
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("vm_id", name=op.f("pk_ts_vm_term")),
    )
    op.create_table(
        "ts_host",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("live_name", sa.Text(), nullable=True),
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("spki", sa.Text(), nullable=False),
        sa.Column("chain", sa.LargeBinary(), nullable=False),
        sa.Column("registered", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("previous_serial", sa.Text(), nullable=False),
        sa.Column("previous_spki", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["server_id"], ["ts_server.id"], name=op.f("fk_ts_host_server_id_ts_server")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ts_host")),
        sa.UniqueConstraint("live_name", name=op.f("uq_ts_host_live_name")),
    )
    with op.batch_alter_table("ts_host", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ts_host_server_id"), ["server_id"], unique=False)

    op.create_table(
        "ts_pair_cloud",
        sa.Column("cloud_id", sa.Text(), nullable=False),
        sa.Column("pair_id", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["pair_id"], ["ts_pair.id"], name=op.f("fk_ts_pair_cloud_pair_id_ts_pair"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("cloud_id", name=op.f("pk_ts_pair_cloud")),
    )
    with op.batch_alter_table("ts_pair_cloud", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ts_pair_cloud_pair_id"), ["pair_id"], unique=False)

    op.create_table(
        "ts_protected",
        sa.Column("vm_id", sa.Text(), nullable=False),
        sa.Column("vm_name", sa.Text(), nullable=False),
        sa.Column("pair_id", sa.Text(), nullable=False),
        sa.Column("source_host", sa.Text(), nullable=False),
        sa.Column("target_host", sa.Text(), nullable=False),
        sa.Column("owner_host", sa.Text(), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("paused", sa.Boolean(), nullable=False),
        sa.Column("disks", sa.JSON(), nullable=False),
        sa.Column("grant", sa.LargeBinary(), nullable=True),
        sa.Column("grant_expires", sa.Double(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("keep_replica", sa.Boolean(), nullable=False),
        sa.Column("failover_cycle", sa.BigInteger(), nullable=False),
        sa.Column("failover_instant", sa.Double(), nullable=False),
        sa.Column("failed_over_at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["pair_id"], ["ts_pair.id"], name=op.f("fk_ts_protected_pair_id_ts_pair")),
        sa.PrimaryKeyConstraint("vm_id", name=op.f("pk_ts_protected")),
    )
    with op.batch_alter_table("ts_protected", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ts_protected_pair_id"), ["pair_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_ts_protected_source_host"), ["source_host"], unique=False)
        batch_op.create_index(batch_op.f("ix_ts_protected_target_host"), ["target_host"], unique=False)

    op.create_table(
        "ts_registration_key_use",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("spki", sa.Text(), nullable=False),
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["key_id"], ["ts_registration_key.id"], name=op.f("fk_ts_registration_key_use_key_id_ts_registration_key")
        ),
        sa.ForeignKeyConstraint(
            ["server_id"], ["ts_server.id"], name=op.f("fk_ts_registration_key_use_server_id_ts_server")
        ),
        sa.PrimaryKeyConstraint("key_id", "spki", name=op.f("pk_ts_registration_key_use")),
    )
    op.create_table(
        "ts_session",
        sa.Column("serial", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Text(), nullable=False),
        sa.Column("spki", sa.Text(), nullable=False),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("expires", sa.Double(), nullable=False),
        sa.Column("ended", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["user_id"], ["ts_user.id"], name=op.f("fk_ts_session_user_id_ts_user")),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_ts_session")),
    )
    with op.batch_alter_table("ts_session", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ts_session_user_id"), ["user_id"], unique=False)

    op.create_table(
        "ts_task",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("stage", sa.Integer(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("args", sa.JSON(), nullable=False),
        sa.Column("always", sa.Boolean(), nullable=False),
        sa.Column("optional", sa.Boolean(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("percent", sa.Integer(), nullable=False),
        sa.Column("bytes_done", sa.BigInteger(), nullable=False),
        sa.Column("bytes_total", sa.BigInteger(), nullable=False),
        sa.Column("bytes_per_second", sa.Double(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("progressed", sa.Double(), nullable=True),
        sa.Column("error", sa.LargeBinary(), nullable=True),
        sa.Column("started", sa.Double(), nullable=True),
        sa.Column("ended", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["job_id"], ["ts_job.id"], name=op.f("fk_ts_task_job_id_ts_job"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ts_task")),
    )
    with op.batch_alter_table("ts_task", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ts_task_job_id"), ["job_id"], unique=False)

    op.create_table(
        "ts_agent_command",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Text(), nullable=False),
        sa.Column("server_id", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("cancelled", sa.Double(), nullable=True),
        sa.Column("created", sa.Double(), nullable=False),
        sa.Column("result", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(
            ["task_id"], ["ts_task.id"], name=op.f("fk_ts_agent_command_task_id_ts_task"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ts_agent_command")),
    )
    with op.batch_alter_table("ts_agent_command", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_ts_agent_command_server_id"), ["server_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_ts_agent_command_task_id"), ["task_id"], unique=False)
    for statement in APPEND_ONLY[op.get_bind().dialect.name]:
        op.execute(statement)
