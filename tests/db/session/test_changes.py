"""Whether anybody has written: seen for every commit of every connection, and never without one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa

import db
from db.changes import DatabaseChanges
from db.session import connect
from tests.servers import Server, new_database, postgres
from tests.waiting import eventually


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    with ExitStack() as stack:
        if request.param == "sqlite":
            url = f"sqlite:///{tmp_path / 'a.db'}"
        else:
            url = stack.enter_context(new_database(request.getfixturevalue("server").url))
        engine = connect(url)
        write(engine, "CREATE TABLE t (x INTEGER)")
        yield engine
        engine.dispose()


def says_no(changes: DatabaseChanges) -> bool:
    """That there is nothing new. PostgreSQL itself may write at any moment, to its statistics."""
    if changes._engine.dialect.name == "sqlite":
        return not changes.look()
    return bool(eventually(lambda: not changes.look()))


def write(engine: sa.Engine, statement: str) -> None:
    with engine.execution_options(immediate=True).begin() as connection:
        connection.exec_driver_sql(statement)


def test_every_commit_is_seen_once(engine: sa.Engine) -> None:
    changes = DatabaseChanges(engine)
    assert changes.look()  # nothing was read yet
    assert says_no(changes)
    write(engine, "INSERT INTO t VALUES (1)")
    assert changes.look()
    assert says_no(changes)
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT * FROM t").all()
    assert says_no(changes)
    changes.close()


def test_what_a_transaction_wrote_is_seen_when_it_ends_though_others_came_between(engine: sa.Engine) -> None:
    changes = DatabaseChanges(engine)
    with engine.execution_options(immediate=True).begin() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (1)")
        if engine.dialect.name == "postgresql":
            write(engine, "INSERT INTO t VALUES (2)")  # of a later number, and committed first
        changes.look()
        assert says_no(changes)
    assert changes.look()
    assert says_no(changes)
    changes.close()


def test_a_commit_of_another_process_is_seen(engine: sa.Engine) -> None:
    changes = DatabaseChanges(engine)
    changes.look()
    program = """
import sys
from db.session import connect
with connect(sys.argv[1]).execution_options(immediate=True).begin() as connection:
    connection.exec_driver_sql("INSERT INTO t VALUES (1)")
"""
    url = engine.url.render_as_string(hide_password=False)
    subprocess.run([sys.executable, "-c", program, url], check=True, cwd=Path(db.__file__).parents[1])
    assert changes.look()
    assert says_no(changes)
    changes.close()


def test_each_reader_sees_it(engine: sa.Engine) -> None:
    one, other = DatabaseChanges(engine), DatabaseChanges(engine)
    assert [one.look(), other.look()] == [True, True]
    write(engine, "INSERT INTO t VALUES (1)")
    assert one.look()
    assert says_no(one)
    assert other.look()
    one.close()
    other.close()


def test_many_readers_take_nothing_from_the_pool(engine: sa.Engine) -> None:
    readers = [DatabaseChanges(engine) for _ in range(20)]
    assert all(reader.look() for reader in readers)
    assert isinstance(engine.pool, sa.QueuePool)
    assert engine.pool.checkedout() == 0
    for reader in readers:
        reader.close()


def test_after_close_it_says_yes(engine: sa.Engine) -> None:
    changes = DatabaseChanges(engine)
    changes.look()
    changes.close()
    assert changes.look()
    assert says_no(changes)
    changes.close()
    changes.close()


def test_a_lost_connection_says_yes_and_is_opened_again(server: Server) -> None:
    with new_database(server.url) as url:
        engine = connect(url)
        changes = DatabaseChanges(engine)
        changes.look()
        write(engine, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()")
        assert changes.look()
        changes.look()
        assert says_no(changes)
        changes.close()
        engine.dispose()


@pytest.mark.parametrize("url", ["sqlite:///{}/no folder/a.db", "postgresql+psycopg2://nobody@127.0.0.1:9/none"])
def test_where_there_is_no_database_it_says_yes(tmp_path: Path, url: str) -> None:
    changes = DatabaseChanges(sa.create_engine(url.format(tmp_path)))
    assert [changes.look(), changes.look()] == [True, True]
    changes.close()
