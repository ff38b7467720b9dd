"""What tests of this room share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from models.engine.batcher import Batcher
from tests import toy_models
from tests.models.shelf import Shelf


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    toy_models.classifier(folder)
    return folder


@pytest.fixture
def shelf(toy_folder: Path) -> Iterator[Shelf]:
    shelf = Shelf(toy_folder)
    yield shelf
    shelf.slow.set()
    shelf.engine.close()


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    batcher = Batcher(threads=2, max_bytes=1000)
    yield batcher
    batcher.close(5)
