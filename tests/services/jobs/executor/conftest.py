"""A platform with the toys and an executor on it, for each test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from models.engine import engine
from services.jobs import executor
from tests.services.jobs.executor.inputs import Run
from tests.services.jobs.job_homes import AtWork, at_work, make_home


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("template"))


@pytest.fixture
def run(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(engine, "reclaim_memory", lambda: None)  # takes longer than most of these tests
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody pulls the plug here
    monkeypatch.setattr(executor, "WATCH_S", 0.05)

    def run(main: Callable[[AtWork], Awaitable[None]], **given: Any) -> None:
        async def whole() -> None:
            async with at_work(template, tmp_path, **given) as bench:
                await asyncio.wait_for(main(bench), 60)

        asyncio.run(whole())

    return run
