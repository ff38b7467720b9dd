"""Databases and blob stores for these tests: every one is real, and each test has its own."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from db.blobs import BlobStore, open_store
from db.jobs import JobRecords
from db.migrate import migrate
from db.records import Records
from db.registry import Registry
from db.session import connect
from db.tables import RegistryRevision, Row
from tests.servers import Server, new_database, postgres, rclone_s3


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Server]:
    with postgres() as server:
        yield server


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with rclone_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: Server) -> Iterator[str]:
    """One migrated database for all tests; a new one for each would take most of their time."""
    with new_database(postgres_server.url) as url:
        migrate(url)
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without a table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'new' / 'ekiben.db'}"
        return
    with new_database(request.getfixturevalue("postgres_server").url) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A migrated database without rows."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'ekiben.db'}"
        migrate(url)
        yield url
        return
    url = request.getfixturevalue("migrated_postgres")
    engine = connect(url)
    with engine.begin() as connection:
        tables = ", ".join(set(Row.metadata.tables) - {RegistryRevision.__tablename__})
        connection.exec_driver_sql(f"TRUNCATE {tables}")
        connection.execute(sa.update(RegistryRevision).values(revision=0))
    engine.dispose()
    yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = connect(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def records(engine: sa.Engine) -> Iterator[Records]:
    records = Records(engine)
    yield records
    records.close()


@pytest.fixture
def registry(engine: sa.Engine) -> Registry:
    return Registry(engine)


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlobStore]:
    """An empty folder; a bucket that other tests write to as well, so each test has its own keys."""
    if request.param == "folder":
        store = open_store(str(tmp_path / "blobs"))
    else:
        server: Server = request.getfixturevalue("s3_server")
        store = open_store(server.url, server.access_key, server.secret_key)
    yield store
    store.close()


@pytest.fixture
def key() -> str:
    """The key of a blob that is not there yet."""
    return f"images/2026/11/20/{uuid.uuid4()}.jpg"


@pytest.fixture
def jobs(engine: sa.Engine) -> JobRecords:
    return JobRecords(engine)
