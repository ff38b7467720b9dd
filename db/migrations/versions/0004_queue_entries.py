"""jobs.hands becomes jobs.entries: the queue entries that a job was given."""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    # Both databases rename in place (SQLite since 3.25): no table is written anew.
    op.execute("ALTER TABLE jobs RENAME COLUMN hands TO entries")


def downgrade() -> None:
    op.execute("ALTER TABLE jobs RENAME COLUMN entries TO hands")
