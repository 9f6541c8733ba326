"""Sites, the places of items, jobs of many items, and process servers that are deployed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Forwards; there is no way back but the copy of the vault."""

    op.add_column("item", sa.Column("off_generation", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "lifecycle_plan",
        sa.Column("item", sa.String(length=160), nullable=False),
        sa.Column("plan_json", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("item"),
    )
    op.create_table(
        "lifecycle_site",
        sa.Column("name", sa.String(length=160), nullable=False),
        sa.Column("kind", sa.String(length=160), nullable=False),
        sa.Column("address", sa.String(length=160), nullable=False),
        sa.Column("certificate_pem", sa.Text(), nullable=False),
        sa.Column("sealed_token", sa.LargeBinary(), nullable=False),
        sa.Column("added_ns", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "lifecycle_batch",
        sa.Column("id", sa.String(length=160), nullable=False),
        sa.Column("batch_json", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_table(
        "lifecycle_deployment",
        sa.Column("id", sa.String(length=160), nullable=False),
        sa.Column("name", sa.String(length=160), nullable=False),
        sa.Column("deployment_json", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("deployment_name", "lifecycle_deployment", [sa.text("lower(name)")], unique=True)
