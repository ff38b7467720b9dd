"""Whether the file of a SQLite database is one, whole, and the one that was there before: said in words."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from db.blobs import BlobStore
from db.folder_store import FolderStore
from db.session import DATABASE_DAMAGED, FULL, error_code, is_broken, is_out_of_space, parse_url
from db.tables import Row
from ekiben.errors import Refusal, StorageFull, Unavailable

VERSION_TABLE = "ekiben_version"
"""Of the migrations; not Alembic's default: another application in the database may use that."""

AREAS = ("models/", "images/", "artifacts/", "datasets/")
"""Prefixes of the keys under which a store holds what rows of the database refer to."""

_MAGIC = b"SQLite format 3\0"
_BUSY_MS = 10_000


def check_database_file(url: str, store: BlobStore, seconds: float = 0.0) -> None:
    """Unavailable, in words for who starts a process, where the SQLite file of ``url`` cannot be used.

    A missing or empty file is that of a new home, unless ``store`` holds files already. ``seconds``: that SQLite may
    compare all pages of the file with each other; 0: only what every start reads. Nothing is checked of PostgreSQL.
    """
    parsed = parse_url(url)
    if parsed.get_backend_name() != "sqlite":
        return
    path = Path(parsed.database or "").absolute()
    size = _size(path)
    if size is None:
        # Elsewhere than the store it may be a second database of that store.
        if isinstance(store, FolderStore) and store.root.parent == path.parent and _holds_files(store):
            raise _lost(f"{path} is missing", store)
        return
    if size == 0:
        log_bytes = _size(path.with_name(f"{path.name}-wal")) or 0
        if log_bytes or _holds_files(store):
            raise _lost(f"{path} is empty (0 bytes)", store)
        return
    with path.open("rb") as file:
        begins_well = file.read(len(_MAGIC)) == _MAGIC
    if not begins_well:
        raise Unavailable(f"{path} is not a SQLite database: {_restore(path)}", code=DATABASE_DAMAGED)
    if not _has_version(path, seconds) and _holds_files(store):
        raise _lost(f"{path} is not Ekiben's: it has none of its tables", store)


def _size(path: Path) -> int | None:
    """Bytes of the file; None where there is none. Unavailable where this user may not read and write it."""
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror}") from None
    if not path.is_file():
        raise Unavailable(f"{path} is no file")
    if not os.access(path, os.R_OK | os.W_OK) or not os.access(path.parent, os.W_OK):
        raise Unavailable(
            f"{path} and its folder must be readable and writable for the user who runs Ekiben (uid {os.geteuid()}), "
            "on a file system that is not read-only"
        )
    return size


def _has_version(path: Path, seconds: float) -> bool:
    """Whether migrations of Ekiben made the tables of the file. Unavailable where it is damaged."""
    with _reading(path) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        versioned = VERSION_TABLE in names and bool(connection.execute(f"SELECT * FROM {VERSION_TABLE}").fetchall())
        if not versioned and names & set(Row.metadata.tables):
            raise Unavailable(
                f"{path} is damaged (tables without a row in {VERSION_TABLE}): {_restore(path)}", code=DATABASE_DAMAGED
            )
        if seconds and (found := _compare_pages(connection, seconds)) != "ok":
            raise Unavailable(f"{path} is damaged ({found}): {_restore(path)}", code=DATABASE_DAMAGED)
    return versioned


def _compare_pages(connection: sqlite3.Connection, seconds: float) -> str:
    """The first finding of SQLite's ``quick_check``; "ok" where there is none, or none in that time."""
    timer = threading.Timer(seconds, connection.interrupt)
    timer.start()
    try:
        found = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname != "SQLITE_INTERRUPT":
            raise
        return "ok"
    finally:
        timer.cancel()
        timer.join()  # the connection must not be closed under it
    # Interrupted, it may report what it has read so far as a finding.
    text = " ".join(str(found[0]).split()) if found else "ok"
    return "ok" if "interrupted" in text else text[:200]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    connection: sqlite3.Connection | None = None
    try:
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        yield connection
    except sqlite3.Error as error:
        code = error_code(error)
        if is_out_of_space(code):
            raise StorageFull(FULL) from None
        if is_broken(code):
            raise Unavailable(f"{path} is damaged ({error}): {_restore(path)}", code=DATABASE_DAMAGED) from None
        raise Unavailable(f"{path} cannot be used: {error}") from None
    except UnicodeDecodeError as error:  # of a name in the schema
        raise Unavailable(f"{path} is damaged ({error}): {_restore(path)}", code=DATABASE_DAMAGED) from None
    finally:
        if connection is not None:
            connection.close()


def _holds_files(store: BlobStore) -> bool:
    return any(next(iter(store.list(area)), None) is not None for area in AREAS)


def _lost(what: str, store: BlobStore) -> Refusal:
    where = f"the blob store {store.root}" if isinstance(store, FolderStore) else "the blob store"
    return Unavailable(
        f"{what}, but {where} holds files of an earlier database: restore a backup of the database; to begin anew, "
        "choose an empty EKIBEN_HOME, or move the database and the files of the store away",
        code=DATABASE_DAMAGED,
    )


def _restore(path: Path) -> str:
    name = path.name
    return f"stop all processes, move {name}, {name}-wal and {name}-shm away, and restore a backup as {name}"
