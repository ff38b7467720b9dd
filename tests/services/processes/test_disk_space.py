"""The warning before a disk is full."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from ekiben.settings import Settings
from services.processes.disk_space import DiskSpace

ENORMOUS = 10**12  # MB


def test_what_is_free(tmp_path: Path) -> None:
    space = DiskSpace(Settings(home=tmp_path / "new" / "var", min_free_mb=0))
    free = space.free_bytes()
    assert set(free) == {"home", "database", "store"}
    assert all(each > 0 for each in free.values())
    assert space.warning() is None
    assert space.summary().endswith(" MB free")


def test_elsewhere_nothing_is_seen(tmp_path: Path) -> None:
    there = {"database_url": "postgresql://u@h/d", "store_url": "s3://bucket?endpoint=http://h:1"}
    assert set(DiskSpace(Settings(home=tmp_path, **there)).free_bytes()) == {"home"}


def test_little_is_said_in_words_and_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    space = DiskSpace(Settings(home=tmp_path, min_free_mb=ENORMOUS))
    words = space.warning()
    assert words is not None
    assert words.endswith(f"MB free for the store ({tmp_path}); EKIBEN_MIN_FREE_MB is {ENORMOUS}")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            space.look()
    assert [line.getMessage() for line in caplog.records] == [f"the disk is nearly full: {words}"]
