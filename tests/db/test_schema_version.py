"""The revision of a database, read without Alembic."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory

from db.migrate import current, downgrade, migrate
from db.schema.ensure import ensure_newest
from db.schema.version import SCRIPTS, NewerDatabase, is_newest, newest_revision
from ekiben.errors import BadInput


def test_the_newest_revision_is_alembics_head() -> None:
    assert newest_revision() == ScriptDirectory(str(SCRIPTS)).get_current_head()


def test_a_database_is_the_newest_once_it_is_migrated(tmp_path: Path) -> None:
    file = tmp_path / "ekiben.db"
    url = f"sqlite:///{file}"
    assert not is_newest(url)
    assert not file.exists()  # asking makes no file
    migrate(url)
    assert is_newest(url)
    downgrade(url, "0001")
    assert not is_newest(url)
    ensure_newest(url)
    assert current(url) == newest_revision()


def test_postgresql_too(migrated_postgres: str) -> None:
    assert is_newest(migrated_postgres)


@pytest.mark.parametrize("content", [b"", b"not a database, but a file of text" * 100])
def test_what_cannot_be_read_is_not_the_newest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ekiben.db").write_bytes(content)
    assert not is_newest(f"sqlite:///{tmp_path / 'ekiben.db'}")
    assert (tmp_path / "ekiben.db").read_bytes() == content


def test_a_newer_database_is_refused_in_words(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ekiben.db'}"
    migrate(url)
    with sqlite3.connect(tmp_path / "ekiben.db") as connection:
        connection.execute("UPDATE ekiben_version SET version_num = '9999'")
    with pytest.raises(NewerDatabase, match="9999"):
        ensure_newest(url)


def test_an_address_of_another_kind_is_bad_input() -> None:
    with pytest.raises(BadInput):
        is_newest("mysql://localhost/x")


def test_a_current_database_imports_neither_alembic_nor_minio(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ekiben.db'}"
    migrate(url)
    code = (
        "import sys, services.app_state\n"
        "from db.schema.ensure import ensure_newest\n"
        "from db.blobs import open_store\n"
        f"ensure_newest({url!r})\n"
        f"open_store({str(tmp_path / 'store')!r})\n"
        "print(sorted({'alembic', 'minio', 'mako'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
