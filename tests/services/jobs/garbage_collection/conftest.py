"""A platform on a fresh home, for each test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from models.engine import engine
from tests.services.jobs.garbage_collection.past import Run
from tests.services.jobs.job_homes import AtWork, at_work, make_home


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("template"))


@pytest.fixture
def run(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(engine, "reclaim_memory", lambda: None)
    monkeypatch.setattr(os, "fsync", lambda handle: None)

    def run(main: Callable[[AtWork], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with at_work(template, tmp_path) as bench:
                await asyncio.wait_for(main(bench), 60)

        asyncio.run(whole())

    return run
