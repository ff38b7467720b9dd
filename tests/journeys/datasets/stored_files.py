"""The files that a home holds, and the dataset of six discs."""

from __future__ import annotations

import os
from pathlib import Path

from tests.conftest import publish
from tests.journeys.datasets.dataset_client import discs
from tests.waiting import eventually

NOWHERE = "01890000-0000-7000-8000-000000000000"
ZIP = {"content-type": "application/zip"}
SIX = discs(range(6))


def publish_toys(home: Path, artifacts: dict[str, Path]) -> Path:
    for name, artifact in artifacts.items():
        publish(home, name, artifact)
    return home


def stored(home: Path) -> set[str]:
    """Keys of all files of datasets, and what lies in the home besides: work, uploads, caches."""
    found = {
        Path(folder, name)
        for top in ("blobs/datasets", "work", "cache/datasets")
        for folder, _, names in os.walk(home / top)  # passes over folders that a worker removes meanwhile
        for name in names
    }
    loose = (path for path in home.iterdir() if path.is_file() and path.suffix not in (".log", ".lock"))
    there = {path for path in found if path.is_file()} | {path for path in loose if "ekiben.db" not in path.name}
    return {path.relative_to(home).as_posix() for path in there}


def settled(home: Path) -> set[str]:
    """``stored`` once no worker has a folder of its own left: a job is over a moment before its folder is removed."""
    eventually(lambda: not any(path.startswith("work/") for path in stored(home)), "the end of all work")
    return stored(home)
