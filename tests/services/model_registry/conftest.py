"""A registry with a blob store of its own, and the publishing of toys."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from db.blobs import open_store
from db.folder_store import FolderStore
from db.migrate import migrate
from db.publishing import publish_folder
from db.registry import Registry
from db.session import connect
from db.tables import ModelVersion
from models.artifact import read_manifest
from models.engine.engine import ModelKey


@dataclass(frozen=True)
class Shelf:
    """``toys``: artifact folders by name."""

    engine: sa.Engine
    registry: Registry
    store: FolderStore
    toys: dict[str, Path]

    def publish(self, name: str = "colours", toy: str = "colours", **given: Any) -> ModelKey:
        """Publish a toy as the next version of ``name``."""
        manifest = read_manifest(self.toys[toy])
        row: ModelVersion = publish_folder(
            self.registry,
            self.store,
            self.toys[toy],
            name=name,
            manifest=manifest.model_dump(mode="json"),
            digest=manifest.digest,
            lineage={},
            **given,
        )
        return ModelKey(row.owner, row.name, row.version)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("registry") / "ekiben.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def shelf(empty_database: Path, toy_artifacts: dict[str, Path], tmp_path: Path) -> Iterator[Shelf]:
    shutil.copy(empty_database, tmp_path / "ekiben.db")
    engine = connect(f"sqlite:///{tmp_path / 'ekiben.db'}")
    store = open_store(str(tmp_path / "blobs"))
    assert isinstance(store, FolderStore)
    yield Shelf(engine, Registry(engine), store, toy_artifacts)
    store.close()
    engine.dispose()
