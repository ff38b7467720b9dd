"""model_versions.disabled_reason: the limit of time or memory that a version has exceeded; it is not run any more."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    # Both databases add a nullable column in place.
    op.add_column("model_versions", sa.Column("disabled_reason", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("model_versions", "disabled_reason")
