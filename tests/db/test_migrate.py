"""Migrations on both databases: up, down, all or nothing, many at once, and the same schema as tables.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from db import migrate as migrations
from db.migrate import check, current, downgrade, migrate
from db.schema.version import SCRIPTS, NewerDatabase
from db.session import connect
from db.tables import Row
from ekiben.errors import Conflict, Unavailable
from tests.db import rows
from tests.servers import free_port

HEAD = "0006"
FIFTH = '''
"""A change that SQLite makes by writing tables anew."""
import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

def upgrade():
    with op.batch_alter_table("images") as batch:
        batch.add_column(sa.Column("camera", sa.String(), nullable=False, server_default="unknown"))
        batch.alter_column("filename", new_column_name="name", existing_type=sa.String())
    with op.batch_alter_table("predictions") as batch:
        batch.alter_column("error", type_=sa.Text(), existing_type=sa.String())

def downgrade():
    with op.batch_alter_table("images") as batch:
        batch.alter_column("name", new_column_name="filename", existing_type=sa.String())
        batch.drop_column("camera")
    with op.batch_alter_table("predictions") as batch:
        batch.alter_column("error", type_=sa.String(), existing_type=sa.Text())
'''
FAILING = '''
"""A change that breaks half-way."""
import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

def upgrade():
    op.add_column("images", sa.Column("camera", sa.String()))
    op.execute("INSERT INTO registry_revision (id, revision) VALUES (1, 0)")

def downgrade():
    pass
'''


def scripts(tmp_path: Path, third: str) -> Path:
    """The real migrations and one more."""
    folder = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "0007_fourth.py").write_text(third)
    return folder


def request(url: str, question: str) -> list[tuple[Any, ...]]:
    engine = connect(url)
    with engine.begin() as connection:
        answer = [tuple(row) for row in connection.exec_driver_sql(question)]
    engine.dispose()
    return answer


def execute(url: str, *statements: str) -> None:
    engine = connect(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    engine.dispose()


def seed(url: str) -> None:
    """One row of each of the three tables that refer to each other, with the columns that the schema has."""
    engine = connect(url)
    image = rows.image(id="image-1")
    prediction = rows.prediction(image.id, id="prediction-1")
    with engine.begin() as connection:
        for row in (image, prediction, rows.artifact(prediction.id, id="artifact-1")):
            table = type(row).__table__  # type: ignore[attr-defined]
            there = {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
            values = {name: value for name, value in row.model_dump().items() if name in there}
            connection.execute(table.insert().values(**values))
    engine.dispose()


def counts(url: str) -> list[int]:
    return [request(url, f"SELECT count(*) FROM {table}")[0][0] for table in ("images", "predictions", "artifacts")]


def described(url: str) -> dict[str, Any]:
    """Everything the database itself says of Ekiben's tables."""
    engine = connect(url)
    inspector = sa.inspect(engine)
    found = {
        table: {
            "columns": [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in inspector.get_columns(table)],
            "primary": inspector.get_pk_constraint(table),
            "foreign": sorted(inspector.get_foreign_keys(table), key=str),
            "unique": sorted(inspector.get_unique_constraints(table), key=str),
            "checks": sorted(inspector.get_check_constraints(table), key=str),
            "indexes": sorted(
                # SQLAlchemy's objects of text are equal to nothing but themselves.
                (
                    i["name"],
                    i["column_names"],
                    i["unique"],
                    {k: str(v) for k, v in i.get("dialect_options", {}).items()},
                )
                for i in inspector.get_indexes(table)
            ),
        }
        for table in Row.metadata.tables
    }
    engine.dispose()
    return found


def test_migrations_make_what_the_tables_say(empty_url: str) -> None:
    migrate(empty_url)
    assert check(empty_url) == []
    migrated = described(empty_url)
    downgrade(empty_url, "base")
    engine = connect(empty_url)
    Row.metadata.create_all(engine)
    engine.dispose()
    assert migrated == described(empty_url)


def test_check_notices_a_difference(empty_url: str) -> None:
    assert check(empty_url) == [f"the database is at revision None, this code needs {HEAD}"]
    migrate(empty_url)
    execute(empty_url, "DROP INDEX ix_images_owner_sha256")
    (difference,) = check(empty_url)
    assert "ix_images_owner_sha256" in difference


def test_up_twice_down_up(empty_url: str) -> None:
    assert current(empty_url) is None
    migrate(empty_url)
    migrate(empty_url)
    assert current(empty_url) == HEAD
    assert request(empty_url, "SELECT id, revision FROM registry_revision") == [(1, 0)]
    seed(empty_url)
    downgrade(empty_url, "base")
    engine = connect(empty_url)
    assert set(sa.inspect(engine).get_table_names()) <= {"ekiben_version"}
    engine.dispose()
    migrate(empty_url)
    assert counts(empty_url) == [0, 0, 0]


def test_rows_survive_a_table_written_anew(empty_url: str, tmp_path: Path) -> None:
    """On SQLite with foreign keys on, this deletes predictions and artifacts through ON DELETE, without an error."""
    folder = scripts(tmp_path, FIFTH)
    migrate(empty_url)
    seed(empty_url)
    migrate(empty_url, scripts=folder)
    assert request(empty_url, "SELECT id, name, camera FROM images") == [("image-1", "street.jpg", "unknown")]
    assert counts(empty_url) == [1, 1, 1]
    downgrade(empty_url, HEAD, scripts=folder)
    assert counts(empty_url) == [1, 1, 1]
    assert request(empty_url, "SELECT filename FROM images") == [("street.jpg",)]
    assert check(empty_url) == []  # no index or constraint was lost on the way


def test_rows_of_the_first_schema_survive_jobs(empty_url: str) -> None:
    migrate(empty_url, "0001")
    seed(empty_url)
    with pytest.raises(sa.exc.DBAPIError):
        request(empty_url, "SELECT id FROM jobs")
    migrate(empty_url)
    assert (counts(empty_url), check(empty_url)) == ([1, 1, 1], [])
    execute(empty_url, "INSERT INTO chores (name, due_at) VALUES ('sweep', '2026-11-20 12:00:00')")
    downgrade(empty_url, "0001")
    assert counts(empty_url) == [1, 1, 1]
    assert current(empty_url) == "0001"
    migrate(empty_url)
    assert (request(empty_url, "SELECT name FROM chores"), check(empty_url)) == ([], [])


def test_a_migration_that_fails_changes_nothing(empty_url: str, tmp_path: Path) -> None:
    migrate(empty_url)
    seed(empty_url)
    with pytest.raises(Conflict):
        migrate(empty_url, scripts=scripts(tmp_path, FAILING))
    assert current(empty_url) == HEAD
    assert check(empty_url) == []
    assert counts(empty_url) == [1, 1, 1]


def test_tables_of_others_are_left_alone(empty_url: str) -> None:
    execute(
        empty_url,
        "CREATE TABLE workflow_status (workflow_uuid VARCHAR(36) PRIMARY KEY)",
        "INSERT INTO workflow_status VALUES ('w1')",
        "CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)",
        "INSERT INTO alembic_version VALUES ('somebody else')",
    )
    migrate(empty_url)
    assert check(empty_url) == []
    downgrade(empty_url, "base")
    assert request(empty_url, "SELECT * FROM workflow_status") == [("w1",)]
    assert request(empty_url, "SELECT * FROM alembic_version") == [("somebody else",)]


def test_a_newer_database_is_refused(empty_url: str) -> None:
    migrate(empty_url)
    execute(empty_url, "UPDATE ekiben_version SET version_num = '9999'")
    with pytest.raises(NewerDatabase, match="at revision 9999, which this Ekiben does not know"):
        migrate(empty_url)
    with pytest.raises(NewerDatabase):
        downgrade(empty_url, "base")
    assert check(empty_url) == [f"the database is at revision 9999, this code needs {HEAD}"]


def test_four_processes_at_once(empty_url: str) -> None:
    environ = {**os.environ, "EKIBEN_DATABASE_URL": empty_url}
    root = Path(migrations.__file__).parents[1]
    command = [sys.executable, "-m", "db.migrate", "upgrade"]
    processes = [
        subprocess.Popen(command, env=environ, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(4)
    ]
    said = [process.communicate(timeout=60)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0, 0], said
    assert said == ["", "", "", ""]
    assert check(empty_url) == []
    assert request(empty_url, "SELECT id, revision FROM registry_revision") == [(1, 0)]


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EKIBEN_DATABASE_URL", f"sqlite:///{tmp_path / 'ekiben.db'}")

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["migrate", *arguments])
        migrations.main()
        return capsys.readouterr().out.strip()

    assert run("current") == "never migrated"
    with pytest.raises(SystemExit, match=f"this code needs {HEAD}"):
        run("check")
    assert run() == ""
    assert run("current") == HEAD
    assert run("check") == ""
    assert run("downgrade", "base") == ""
    assert run("current") == "never migrated"
    with pytest.raises(SystemExit, match="nowhere"):
        run("downgrade", "nowhere")


def test_a_draft_of_no_change_is_empty(tmp_path: Path) -> None:
    """What autogenerate would write for the present tables, as Python that runs."""
    url = f"sqlite:///{tmp_path / 'ekiben.db'}"
    folder = tmp_path / "scripts"
    shutil.copytree(SCRIPTS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    migrate(url)
    migrations.draft(url, "nothing", scripts=folder)
    text = (folder / "versions" / "0007_nothing.py").read_text()
    compile(text, "0007_nothing.py", "exec")
    assert "op." not in text and f'down_revision = "{HEAD}"' in text.replace("'", '"')


def test_an_unreachable_database_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="the database is unreachable"):
        migrate(f"postgresql://nobody:password@127.0.0.1:{free_port()}/nothing")
