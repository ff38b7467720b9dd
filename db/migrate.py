"""Migrations: bring a database to the schema of this code. ``python -m db.migrate [upgrade | downgrade REV | ...]``."""

from __future__ import annotations

import argparse
import io
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import event

from db.blobs import open_store
from db.schema.sqlite_file import check_database_file
from db.schema.version import SCRIPTS, VERSION_TABLE, NewerDatabase
from db.session import BUSY_MS, DATABASE_DAMAGED, make_folder, parse_url, postgres_arguments, refusing, set_wal
from db.tables import Row
from ekiben.errors import Refusal, Unavailable
from ekiben.private_files import set_umask
from ekiben.settings import Settings

_LOCK = 0x656B6962656E  # "ekiben"; the key of PostgreSQL's advisory lock
_WAIT_MS = 6 * BUSY_MS  # as long as the migration of another process may take

# Alembic keeps its context in module globals.
_one_at_a_time = threading.Lock()


def ours(name: str | None, kind: str, parents: Any) -> bool:
    """Alembic's ``include_name``: False for the tables of DBOS and of other applications."""
    return kind != "table" or name in Row.metadata.tables


def migrate(url: str, revision: str = "head", scripts: Path = SCRIPTS) -> None:
    """Upgrade the schema to ``revision``; nothing happens when it is there. Several processes may call it at once.

    A migration that fails or is killed leaves the schema as it was. Raises NewerDatabase, Unavailable.
    """
    with _ready(url, scripts) as config:
        command.upgrade(config, revision)


def downgrade(url: str, revision: str, scripts: Path = SCRIPTS) -> None:
    """Go back to ``revision``; ``base`` removes every table of Ekiben. Raises NewerDatabase, Unavailable."""
    with _ready(url, scripts) as config:
        command.downgrade(config, revision)


def current(url: str) -> str | None:
    """The revision of the database; None when it was never migrated."""
    with _connection(url) as connection:
        return _context(connection).get_current_revision()


def check(url: str) -> list[str]:
    """How the schema differs from what this code expects, one sentence per difference; empty when it fits."""
    with _connection(url) as connection:
        at, head = _context(connection).get_current_revision(), ScriptDirectory(str(SCRIPTS)).get_current_head()
        if at != head:
            return [f"the database is at revision {at}, this code needs {head}"]
        return [
            f"the schema differs: {difference}" for difference in compare_metadata(_context(connection), Row.metadata)
        ]


def draft(url: str, message: str, scripts: Path = SCRIPTS) -> None:
    """Write a new revision from the difference between db/tables and the database, to be checked by a person."""
    with _ready(url, scripts) as config:
        command.revision(
            config, message, autogenerate=True, rev_id=f"{len(list((scripts / 'versions').glob('*.py'))) + 1:04}"
        )


def _context(connection: sa.Connection) -> MigrationContext:
    options = {
        "version_table": VERSION_TABLE,
        "include_name": ours,
        "compare_type": True,
        "compare_server_default": True,
    }
    return MigrationContext.configure(connection, opts=options)


@contextmanager
def _ready(url: str, scripts: Path) -> Iterator[Config]:
    """Alembic's configuration, with a connection whose transaction excludes other migrations."""
    config = Config(output_buffer=io.StringIO())
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with _one_at_a_time, _connection(url) as connection:
        at = _context(connection).get_current_revision()
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        if at is not None and at not in known:
            raise NewerDatabase(
                f"the database is at revision {at}, which this Ekiben does not know: "
                "run the version of Ekiben that migrated it, or a later one"
            )
        config.attributes["connection"] = connection
        yield config
        _check_references(connection)


@contextmanager
def _connection(url: str) -> Iterator[sa.Connection]:
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        make_folder(parsed)
        engine = sa.create_engine(parsed, poolclass=sa.NullPool)
        event.listen(engine, "connect", _open_sqlite)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    else:
        arguments = postgres_arguments(limits=False)
        engine = sa.create_engine(parsed, poolclass=sa.NullPool, connect_args=arguments)
    with refusing(), engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        yield connection


def _open_sqlite(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None
    connection.execute(f"PRAGMA busy_timeout={_WAIT_MS}")
    set_wal(connection)
    connection.execute("PRAGMA synchronous=FULL")
    # Alembic rewrites a table by dropping it: with foreign keys on, that would cascade and silently delete the rows
    # that refer to it. They are checked at the end instead.
    connection.execute("PRAGMA foreign_keys=OFF")


def _check_references(connection: sa.Connection) -> None:
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
        if any(row[0] in Row.metadata.tables for row in broken):
            raise Unavailable(
                f"the migration would leave {len(broken)} rows that refer to nothing; it is undone",
                code=DATABASE_DAMAGED,
            )


def checked_url(settings: Settings) -> str:
    """The URL of the database, whose file can be used. Raises as ``check_database_file``."""
    store = open_store(settings.resolved_store_url, settings.s3_access_key, settings.s3_secret_key)
    check_database_file(settings.resolved_database_url, store)
    store.close()
    return settings.resolved_database_url


def main() -> None:
    """Run the command line on the database of the settings."""
    parser = argparse.ArgumentParser(prog="python -m db.migrate", description="Migrate Ekiben's database.")
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("upgrade", help="to the schema of this code (the default)")
    commands.add_parser("downgrade", help="back to a revision").add_argument("revision")
    commands.add_parser("current", help="print the revision of the database")
    commands.add_parser("check", help="say whether the database fits this code; exit status 1 when not")
    commands.add_parser("draft", help="write a new revision from db/tables").add_argument("message")
    given = parser.parse_args()
    settings = Settings.from_environ()
    set_umask(settings)
    url = settings.resolved_database_url
    try:
        match given.command:
            case "downgrade":
                downgrade(url, given.revision)
            case "current":
                print(current(url) or "never migrated")
            case "check":
                if differences := check(url):
                    raise SystemExit("\n".join(differences))
            case "draft":
                draft(url, given.message)
            case _:
                migrate(checked_url(Settings.from_environ()))
    except (NewerDatabase, Refusal, CommandError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
