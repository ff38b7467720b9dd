"""Images decoded outside a model: the memory, the deadline, the caller who leaves."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from ekiben.errors import BadImage, DeadlineExceeded
from services.concurrency.memory_budget import MemoryBudget
from services.inference import pipeline, stored_images, volumes
from services.inference.decode_threads import DecodeThreads
from services.rest.app import create_app
from tests.models.medical.dicom_files import dicom
from tests.services.jobs.job_homes import at_work, make_home
from tests.toy_models import encoded, noise
from tests.waiting import async_eventually

DEEP = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40))


class Decoding:
    """Work that waits for the test, and counts how many do at once."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.begun = 0
        self.ended = 0

    def work(self) -> str:
        self.begun += 1
        self.go_on.wait(30)
        self.ended += 1
        return threading.current_thread().name


@pytest.fixture
def decoding() -> Iterator[Decoding]:
    made = Decoding()
    yield made
    made.go_on.set()


def later(seconds: float = 30) -> float:
    return time.monotonic() + seconds


def test_memory_is_held_until_a_thread_ends_whose_caller_left(decoding: Decoding) -> None:
    async def main() -> None:
        memory = MemoryBudget(1000)
        threads = DecodeThreads(memory, 4)
        for _ in range(4):
            one = asyncio.create_task(threads.run(decoding.work, 700, later()))
            await async_eventually(lambda: decoding.begun == 1)
            await asyncio.sleep(0.01)
            one.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await one
        assert (decoding.begun, memory.held) == (1, 700)  # the others found no memory
        decoding.go_on.set()
        await async_eventually(lambda: memory.held == 0)
        assert (await threads.run(decoding.work, 700, later())).startswith("decode")

    asyncio.run(main())


def test_a_caller_is_answered_at_the_deadline(decoding: Decoding) -> None:
    async def main() -> None:
        memory = MemoryBudget(10_000_000)
        threads = DecodeThreads(memory, 1)
        for _ in range(2):  # one that runs, and one that waits for its thread
            with pytest.raises(DeadlineExceeded):
                await threads.run(decoding.work, encoded(noise(20, 10)), later(0.1))
        assert (decoding.begun, memory.held) == (1, 12 * 200)
        decoding.go_on.set()
        await async_eventually(lambda: memory.held == 0)
        assert decoding.begun == 1

    asyncio.run(main())


def test_an_error_is_the_caller_s() -> None:
    def refuse() -> None:
        raise BadImage("damaged")

    async def main() -> None:
        memory = MemoryBudget(1000)
        with pytest.raises(BadImage):
            await DecodeThreads(memory, 1).run(refuse, 700, later())
        assert memory.held == 0

    asyncio.run(main())


@pytest.mark.parametrize("place", [(pipeline, "with_range"), (stored_images, "decode"), (volumes, "open_slices")])
def test_requests_decode_in_such_threads(
    place: tuple[Any, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, name = place
    asked: list[tuple[str, bool]] = []

    async def main() -> None:
        async with at_work(make_home(tmp_path / "template"), tmp_path) as bench:
            memory: MemoryBudget = bench.app_state.inference.pipeline.decoding._memory
            real = getattr(module, name)

            def work(*given: Any) -> Any:
                asked.append((threading.current_thread().name, memory.held > 0))
                return real(*given)

            monkeypatch.setattr(module, name, work)
            app = create_app()
            app.state.app_state = bench.app_state
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://ekiben", timeout=60) as client:
                answers = [
                    await client.post("/v1/classify?model=colours&range=0,500", content=encoded(DEEP)),
                    await client.post("/v1/images", content=encoded(noise(20, 10))),
                    await client.post("/v1/segment?model=areas", content=dicom(np.asarray(DEEP))),
                ]
            assert [answer.status_code for answer in answers] == [200, 201, 200], [each.text for each in answers]

    asyncio.run(main())
    assert [(thread.split("_")[0], held) for thread, held in asked] == [("decode", True)]
