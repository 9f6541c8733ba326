"""Who dials a server, and where it was ever said to be."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Forwards; there is no way back but the copy of the vault."""

    op.create_table(
        "dial",
        sa.Column("server", sa.String(length=160), nullable=False),
        sa.Column("role", sa.String(length=160), nullable=False),
        sa.Column("dialling", sa.String(length=160), nullable=False),
        sa.Column("addresses_json", sa.Text(), nullable=False),
        sa.Column("key_hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("server"),
    )
