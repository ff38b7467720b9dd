"""What every table shares: the naming of constraints, the JSON type, ids, owners and UTC times."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlmodel import Field, SQLModel

from ekiben.ids import new_id

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""Names of indexes and constraints: a migration can only drop what has a name."""

# SQLAlchemy does not notice a dict that is changed in place: assign a new one. None is SQL's NULL, not JSON's null.
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def now() -> datetime:
    """The present, in UTC. A datetime without a time zone is refused when it is stored."""
    return datetime.now(UTC)


class Row(SQLModel):
    """Base class of Ekiben's tables. ``Row.metadata`` holds them all, and no table of another library."""

    metadata: ClassVar[sa.MetaData] = sa.MetaData(naming_convention=NAMES)


class Owned(Row):
    """A row with an id of its own (UUIDv7) that belongs to one owner."""

    id: str = Field(default_factory=new_id, primary_key=True, max_length=36)
    owner: str = "local"
    created_at: datetime = Field(default_factory=now)
