"""The schema that this code needs, at the start of a process. Alembic takes 10 MB of a process: it is imported only for
a database that is not at the newest revision."""

from __future__ import annotations

from db.schema.version import is_newest


def ensure_newest(url: str) -> None:
    """Migrate the database where it is not at the newest revision. Raises as ``db.migrate.migrate``."""
    if not is_newest(url):
        from db.migrate import migrate

        migrate(url)
