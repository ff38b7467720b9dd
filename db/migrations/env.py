"""Entry point of Alembic: ``db/migrate.py`` passes an open connection and its transaction."""

from __future__ import annotations

from typing import Any, Literal

import sqlalchemy as sa
from alembic import context
from alembic.autogenerate.api import AutogenContext

from db.migrate import ours
from db.schema.version import VERSION_TABLE
from db.tables import Row


def render_item(kind: str, item: Any, autogen: AutogenContext) -> str | Literal[False]:
    """Write types as SQLAlchemy's own: SQLModel's types and variants would be written without their import."""
    if kind != "type":
        return False
    if isinstance(item, sa.JSON):
        autogen.imports.add("from sqlalchemy.dialects import postgresql")
        return 'sa.JSON().with_variant(postgresql.JSONB(), "postgresql")'
    match type(item).__name__:
        case "UTCDateTime":
            return "sa.DateTime(timezone=True)"
        case "AutoString":
            return f"sa.String(length={item.length})" if item.length else "sa.String()"
    return False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Row.metadata,
    version_table=VERSION_TABLE,
    include_name=ours,
    render_item=render_item,
    render_as_batch=True,  # SQLite cannot alter most things: Alembic rewrites the table
    compare_type=True,
    compare_server_default=True,
    transactional_ddl=True,  # on SQLite too: the connection begins the transaction itself
)
with context.begin_transaction():
    context.run_migrations()
