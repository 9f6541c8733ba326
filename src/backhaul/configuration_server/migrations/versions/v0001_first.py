"""The first records."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Forwards; there is no way back but the copy of the vault."""

    op.create_table(
        "account",
        sa.Column("name", sa.String(length=160), nullable=False),
        sa.Column("role", sa.String(length=160), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("must_change", sa.Boolean(), nullable=False),
        sa.Column("failures", sa.BigInteger(), nullable=False),
        sa.Column("locked_until_ns", sa.BigInteger(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "event",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("at_ns", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=160), nullable=False),
        sa.Column("code", sa.String(length=160), nullable=False),
        sa.Column("severity", sa.String(length=160), nullable=False),
        sa.Column("subject", sa.String(length=160), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
    )
    op.create_table(
        "job",
        sa.Column("id", sa.String(length=160), nullable=False),
        sa.Column("kind", sa.String(length=160), nullable=False),
        sa.Column("subject", sa.String(length=160), nullable=False),
        sa.Column("subject_name", sa.String(length=160), nullable=False),
        sa.Column("state", sa.String(length=160), nullable=False),
        sa.Column("account", sa.String(length=160), nullable=False),
        sa.Column("tasks_json", sa.Text(), nullable=False),
        sa.Column("errors_json", sa.Text(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("started_ns", sa.BigInteger(), nullable=False),
        sa.Column("ended_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(
        "job_running", "job", ["subject"], unique=True, sqlite_where=sa.text("state IN ('NotStarted', 'InProgress')")
    )
    op.create_table(
        "policy",
        sa.Column("name", sa.String(length=160), nullable=False),
        sa.Column("definition_json", sa.Text(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "sealed",
        sa.Column("name", sa.String(length=160), nullable=False),
        sa.Column("content", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "server",
        sa.Column("id", sa.String(length=160), nullable=False),
        sa.Column("role", sa.String(length=160), nullable=False),
        sa.Column("name", sa.String(length=160), nullable=False),
        sa.Column("state", sa.String(length=160), nullable=False),
        sa.Column("built_in", sa.Boolean(), nullable=False),
        sa.Column("network", sa.String(length=160), nullable=False),
        sa.Column("addresses_json", sa.Text(), nullable=False),
        sa.Column("version", sa.String(length=160), nullable=False),
        sa.Column("machine", sa.String(length=160), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("offer_json", sa.Text(), nullable=False),
        sa.Column("registered_ns", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "token",
        sa.Column("key_id", sa.LargeBinary(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("role", sa.String(length=160), nullable=False),
        sa.Column("server", sa.String(length=160), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
        sa.Column("spent_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_id"),
    )
    op.create_table(
        "vault",
        sa.Column("id", sa.String(length=160), nullable=False),
        sa.Column("name", sa.String(length=160), nullable=False),
        sa.Column("subscription", sa.String(length=160), nullable=False),
        sa.Column("resource_group", sa.String(length=160), nullable=False),
        sa.Column("server_id", sa.String(length=160), nullable=False),
        sa.Column("term", sa.BigInteger(), nullable=False),
        sa.Column("term_key", sa.LargeBinary(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "certificate",
        sa.Column("serial", sa.String(length=160), nullable=False),
        sa.Column("server", sa.String(length=160), nullable=False),
        sa.Column("issued_ns", sa.BigInteger(), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["server"],
            ["server.id"],
        ),
        sa.PrimaryKeyConstraint("serial"),
    )
    op.create_table(
        "item",
        sa.Column("id", sa.String(length=160), nullable=False),
        sa.Column("name", sa.String(length=160), nullable=False),
        sa.Column("state_json", sa.Text(), nullable=False),
        sa.Column("policy", sa.String(length=160), nullable=False),
        sa.Column("agent", sa.String(length=160), nullable=False),
        sa.Column("machine", sa.String(length=160), nullable=False),
        sa.Column("process_server", sa.String(length=160), nullable=False),
        sa.Column("disks_json", sa.Text(), nullable=False),
        sa.Column("still_json", sa.Text(), nullable=False),
        sa.Column("home_json", sa.Text(), nullable=False),
        sa.Column("cloud_json", sa.Text(), nullable=False),
        sa.Column("descriptor", sa.LargeBinary(), nullable=False),
        sa.Column("target_key", sa.LargeBinary(), nullable=False),
        sa.Column("assigned", sa.Boolean(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["agent"],
            ["server.id"],
        ),
        sa.ForeignKeyConstraint(
            ["policy"],
            ["policy.name"],
        ),
        sa.ForeignKeyConstraint(
            ["process_server"],
            ["server.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "session",
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("account", sa.String(length=160), nullable=False),
        sa.Column("expires_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account"], ["account.name"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("token_hash"),
    )
    # ### end Alembic commands ###
    op.create_index("item_name", "item", [sa.text("lower(name)")], unique=True)
