"""predictions.value_range: the pixel values that were black and white, [] where more than a range decided."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    # Predictions of earlier versions have none. Both databases add a nullable column in place.
    op.add_column("predictions", sa.Column("value_range", JSON, nullable=True))


def downgrade() -> None:
    op.drop_column("predictions", "value_range")
