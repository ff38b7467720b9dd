"""The toy Segment Anything in a folder, and its graphs, for the tests of a module."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.engine.session_options import SessionOptions
from models.sam.graphs import SamGraphs
from tests import toy_sam


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sam")
    toy_sam.sam(folder)
    return folder


@pytest.fixture(scope="module")
def graphs(folder: Path) -> SamGraphs:
    return SamGraphs(folder, SessionOptions(device="cpu"), 2)
