"""A bench on a fresh copy of the toy home, for each test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from models.engine import engine
from services.jobs import executor, item_settler
from tests.services.jobs.job_homes import at_work, make_home
from tests.services.jobs.workspace.bench import Bench, Run


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("template"))


@pytest.fixture
def run(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(engine, "reclaim_memory", lambda: None)  # takes longer than most of these tests
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # nobody pulls the plug here
    monkeypatch.setattr(executor, "WATCH_S", 0.02)
    monkeypatch.setattr(item_settler, "FIRST_RETRY_S", 0.01)

    def run(main: Callable[[Bench], Awaitable[None]], **given: Any) -> None:
        async def whole() -> None:
            async with at_work(template, tmp_path, **given) as at:
                with ThreadPoolExecutor(2) as threads:
                    bench = Bench(at, threads, tmp_path)
                    await asyncio.wait_for(main(bench), 60)
                    if bench.wrong:
                        raise bench.wrong[0]

        asyncio.run(whole())

    return run
