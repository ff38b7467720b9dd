"""A fresh runner on the toys, for each test."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from models.engine import engine
from tests import toy_models, toy_sam
from tests.services.runners.sam.served import Served
from tests.waiting import async_eventually


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    toy_sam.sam(folder / "sam_toy")
    toy_models.segmenter(folder / "areas")
    return folder


@pytest.fixture
def run(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a test's coroutine with a fresh runner; no lease is left over afterwards."""
    monkeypatch.setattr(engine, "reclaim_memory", lambda: None)  # takes longer than most of these tests

    def run(main: Callable[[Served], Awaitable[None]], **settings: Any) -> None:
        async def whole() -> None:
            served = Served(artifacts, **settings)
            await served.load()
            try:
                await main(served)
                await async_eventually(lambda: served.users == 0)
            finally:
                served.encode_gate.set()
                served.decode_gate.set()
                await served.runner.close()

        asyncio.run(whole())

    return run
