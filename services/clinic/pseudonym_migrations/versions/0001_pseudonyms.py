"""The pseudonyms, each with whom or what it stands for."""

import sqlalchemy as sa
from alembic import op

revision = "pseudonyms_0001"
down_revision = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "pseudonyms",
        sa.Column("row", sa.Integer(), primary_key=True),
        sa.Column("pseudonym", sa.String(), nullable=False, unique=True),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("known_as", sa.String(), nullable=False),
        sa.Column("document", sa.String(), nullable=False),
        sa.UniqueConstraint("kind", "known_as"),
    )
