"""The revision of a database's schema, read without Alembic."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import exc

from db.session import parse_url, postgres_arguments

SCRIPTS = Path(__file__).parents[1] / "migrations"
VERSION_TABLE = "ekiben_version"  # not Alembic's default: another application in the database may use that


class NewerDatabase(Exception):
    """The database was migrated by a later version of Ekiben; the message says what to do."""


def newest_revision(scripts: Path = SCRIPTS) -> str:
    """The revision that this code needs: the number that the name of the last script begins with."""
    return max(script.stem.split("_")[0] for script in (scripts / "versions").glob("[0-9]*.py"))


def is_newest(url: str) -> bool:
    """Whether the database is at the revision that this code needs. False too where that cannot be read: the migration
    says why. Nothing is written. BadInput for a URL that cannot be used."""
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        if not Path(parsed.database or "").is_file():
            return False
        engine = sa.create_engine(parsed, poolclass=sa.NullPool)
    else:
        engine = sa.create_engine(parsed, poolclass=sa.NullPool, connect_args=postgres_arguments())
    try:
        with engine.connect() as connection:
            return bool(connection.scalar(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")) == newest_revision())
    except exc.DBAPIError:
        return False
