"""A database of its own for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from db.jobs import JobRecords
from db.migrate import migrate
from db.session import connect


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without rows, to be copied for each test."""
    path = tmp_path_factory.mktemp("template") / "x.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def engine(template: Path, tmp_path: Path) -> Iterator[sa.Engine]:
    shutil.copytree(template.parent, tmp_path, dirs_exist_ok=True)
    engine = connect(f"sqlite:///{tmp_path / 'x.db'}")
    yield engine
    engine.dispose()


@pytest.fixture
def records(engine: sa.Engine) -> JobRecords:
    return JobRecords(engine)
