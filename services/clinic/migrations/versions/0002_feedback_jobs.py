"""What readers said of cases, and batches of questions with their items."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the three tables."""
    op.create_table(
        "feedback",
        sa.Column("row", sa.Integer(), primary_key=True),
        sa.Column("case_id", sa.String(), nullable=False, index=True),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("document", sa.String(), nullable=False),
        sa.UniqueConstraint("case_id", "version"),
    )
    op.create_table(
        "jobs",
        sa.Column("number", sa.Integer(), primary_key=True),
        sa.Column("job_id", sa.String(), nullable=False, unique=True),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("document", sa.String(), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "job_items",
        sa.Column("row", sa.Integer(), primary_key=True),
        sa.Column("job_id", sa.String(), nullable=False, index=True),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(), nullable=False, index=True),
        sa.Column("case_id", sa.String()),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("document", sa.String(), nullable=False),
        sa.UniqueConstraint("job_id", "number"),
    )
