"""Images that are read in tiles, on toy U-Nets: which runs there are, who shares one, and callers who leave."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import BadImage, DeadlineExceeded, Overloaded
from ekiben.settings import Settings
from models.engine.batch_size import BatchSizer
from models.engine.loader import LoadedNetwork
from models.inference_requests import PROBABILITY, RENDERS, InferenceRequest, InferenceResponse
from models.model_key import ModelKey
from models.results import Timing
from services.runners import unet
from services.runners.local import LocalRunner
from services.runners.progress import NO_PROGRESS, ProgressSink
from tests import toy_models
from tests.waiting import async_eventually

TILED, WHOLE, MANY = (ModelKey("local", name, 1) for name in ("cells_tiled", "cells_whole", "areas_tiled"))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    toy_models.unet(folder / TILED.name, binary=True, overlap=0.5)
    toy_models.unet(folder / WHOLE.name, binary=True)
    toy_models.unet(folder / MANY.name, overlap=0.25)
    return folder


class Served:
    """A runner on the toys, whose runs are counted and can be held at a gate."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.pause_s = 0.0
        self.entered = threading.Semaphore(0)
        given = {"home": folder, "threads": 2, "device": "cpu"} | settings
        self.runner = LocalRunner(Settings(**given), lambda key: folder / key.name)

    async def load(self, key: ModelKey = TILED) -> LoadedNetwork:
        await self.runner.load(key)
        loaded = self.runner.engine.lease(key)
        self.runner.engine.release(loaded)
        assert isinstance(loaded, LoadedNetwork)
        run = loaded.session.run

        def spied(batch: NDArray[np.generic], cancellation: Any = None) -> NDArray[np.floating[Any]]:
            self.batches.append(len(batch))
            self.entered.release()
            assert self.gate.wait(20)
            time.sleep(self.pause_s)
            return run(batch, cancellation)

        loaded.session.run = spied  # type: ignore[method-assign]
        return loaded

    async def segment(
        self,
        image: bytes,
        *,
        key: ModelKey = TILED,
        timeout_s: float = 20,
        progress: ProgressSink = NO_PROGRESS,
        **more: Any,
    ) -> tuple[InferenceResponse, Timing]:
        return await self.runner.infer(key, InferenceRequest(image, **more), time.monotonic() + timeout_s, progress)

    async def in_a_run(self, times: int = 1) -> None:
        for _ in range(times):
            assert await asyncio.to_thread(self.entered.acquire, True, 10)

    def nothing_is_held(self, key: ModelKey = TILED) -> bool:
        users, held = self.runner.engine._entries[key].users, self.runner.memory.held
        return (users, held, self.runner.batcher.depth(key)) == (0, 0, 0)


def run(artifacts: Path, main: Callable[[Served], Awaitable[None]], **settings: Any) -> None:
    async def whole() -> None:
        served = Served(artifacts, **settings)
        try:
            await asyncio.wait_for(main(served), 30)
        finally:
            served.gate.set()
            await served.runner.close()

    asyncio.run(whole())


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


def mask_of(answer: InferenceResponse) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(answer.renders["mask"])))


IMAGE = toy_models.noise(150, 90)
PIECES = 9 * 5
DATA = toy_models.encoded(IMAGE)
TRUTH = toy_models.cell_logits(pixels_of(IMAGE)) >= 0


@pytest.mark.parametrize("flips", [False, True])
def test_an_image_at_its_own_size(artifacts: Path, flips: bool) -> None:
    async def main(served: Served) -> None:
        await served.load()
        answer, timing = await served.segment(DATA, renders=(*RENDERS, PROBABILITY), flips=flips)
        assert np.array_equal(mask_of(answer), TRUTH)
        assert {area.class_name: area.pixels for area in answer.areas} == {
            "cell": int(TRUTH.sum()),
            "background": int((~TRUTH).sum()),
        }
        assert (answer.image.width, answer.image.height, answer.image.mime_type) == (150, 90, "image/png")
        assert tuple(answer.renders) == (*RENDERS, PROBABILITY)
        overlay = pixels_of(Image.open(io.BytesIO(answer.renders["overlay"])))
        assert np.array_equal(overlay[~TRUTH], pixels_of(IMAGE)[~TRUTH])
        assert sum(served.batches) == timing.batch_size == PIECES * (4 if flips else 1)
        counts = await served.runner.counters(TILED)
        assert (counts["predictions"], counts["batches"]) == (1, len(served.batches))
        assert served.nothing_is_held()

    run(artifacts, main)


def test_mirror_images_of_an_image_that_is_resized(artifacts: Path) -> None:
    async def main(served: Served) -> None:
        await served.load(WHOLE)
        plain, timing = await served.segment(DATA, key=WHOLE, renders=("mask", PROBABILITY))
        assert (served.batches, timing.batch_size) == ([1], 1)
        flipped, timing = await served.segment(DATA, key=WHOLE, renders=("mask", PROBABILITY), flips=True)
        assert (sum(served.batches), timing.batch_size) == (5, 4)
        levels = [np.asarray(Image.open(io.BytesIO(a.renders[PROBABILITY]))).astype(int) for a in (plain, flipped)]
        assert np.abs(levels[0] - levels[1]).max() <= 1
        small = np.asarray(IMAGE.resize((32, 32), Image.Resampling.BILINEAR))
        scores = Image.fromarray(toy_models.cell_logits(small).astype(np.float32))
        expected = np.asarray(scores.resize(IMAGE.size, Image.Resampling.BILINEAR))
        sure = np.abs(expected) > 1e-4
        for answer in (plain, flipped):
            assert np.array_equal(mask_of(answer)[sure], (expected >= 0)[sure])

    run(artifacts, main)


def test_windows_of_several_requests_share_runs(artifacts: Path) -> None:
    images = [toy_models.noise(70 + n, 60 - n, n) for n in range(4)]

    async def main(served: Served) -> None:
        await served.load()
        await served.segment(DATA)
        served.runner.batcher._queues[TILED].sizer.size = 8  # as on a device where that pays
        served.batches.clear()
        served.gate.clear()
        requested = [asyncio.create_task(served.segment(toy_models.encoded(p), renders=("mask",))) for p in images]
        await async_eventually(lambda: served.runner.batcher.depth(TILED) > 30)
        served.gate.set()
        answers = await asyncio.gather(*requested)
        for image, (answer, _) in zip(images, answers, strict=True):
            assert np.array_equal(mask_of(answer), toy_models.cell_logits(pixels_of(image)) >= 0)
        pieces = sum(timing.batch_size for _, timing in answers)
        assert sum(served.batches) == pieces
        assert max(served.batches) >= 8 and len(served.batches) < pieces / 2

    run(artifacts, main)


def test_no_more_waits_than_keeps_the_slots_busy(artifacts: Path) -> None:
    async def main(served: Served) -> None:
        await served.load()
        served.gate.clear()
        requested = asyncio.create_task(served.segment(DATA))
        await served.in_a_run(2)
        await async_eventually(lambda: served.runner.batcher.depth(TILED) == 2)
        await asyncio.sleep(0.1)
        assert (len(served.batches), served.runner.batcher.depth(TILED)) == (2, 2)
        served.gate.set()
        await requested

    run(artifacts, main)


def test_a_caller_who_left_is_not_computed(artifacts: Path) -> None:
    async def main(served: Served) -> None:
        await served.load()
        served.gate.clear()
        requested = asyncio.create_task(served.segment(DATA))
        await served.in_a_run(2)
        requested.cancel()
        with pytest.raises(asyncio.CancelledError):
            await requested
        served.gate.set()
        await async_eventually(served.nothing_is_held)
        assert len(served.batches) == 2
        answer, _ = await served.segment(DATA, renders=("mask",))
        assert np.array_equal(mask_of(answer), TRUTH)

    run(artifacts, main)


def test_a_deadline_ends_it(artifacts: Path) -> None:
    async def main(served: Served) -> None:
        await served.load()
        served.pause_s = 0.2
        with pytest.raises(DeadlineExceeded):
            await served.segment(DATA, timeout_s=1)
        await async_eventually(served.nothing_is_held)
        assert 2 <= len(served.batches) < PIECES / 2

    run(artifacts, main)


def test_an_image_that_cannot_be_done_in_time_is_not_tried_to_the_end(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unet, "_JUDGED_AFTER_S", 0.1)
    large = toy_models.encoded(toy_models.noise(640, 320))

    async def main(served: Served) -> None:
        await served.load()
        served.pause_s = 0.05
        with pytest.raises(DeadlineExceeded, match=r"of 741 tiles .* as a job"):
            await served.segment(large, timeout_s=8)
        assert len(served.batches) < 100  # of the 320 for which there would have been time
        await async_eventually(served.nothing_is_held)

    run(artifacts, main)


def test_others_are_answered_between_the_windows_of_a_large_image(artifacts: Path) -> None:
    small = toy_models.noise(32, 32)

    async def main(served: Served) -> None:
        await served.load()
        served.pause_s = 0.05
        large = asyncio.create_task(served.segment(DATA))
        await served.in_a_run(2)
        answer, _ = await served.segment(toy_models.encoded(small), renders=("mask",))
        assert not large.done()
        assert np.array_equal(mask_of(answer), toy_models.cell_logits(pixels_of(small)) >= 0)
        await large

    run(artifacts, main)


def test_progress(artifacts: Path) -> None:
    async def main(served: Served) -> None:
        await served.load()
        shares: list[float] = []
        await served.segment(DATA, progress=ProgressSink(shares.append))
        assert shares == sorted(shares)
        assert shares[-1] == 1.0
        assert 1 / PIECES <= shares[0] < 0.2

    run(artifacts, main)


def test_what_is_no_image(artifacts: Path) -> None:
    async def main(served: Served) -> None:
        await served.load()
        with pytest.raises(BadImage):
            await served.segment(DATA[:200])
        assert served.nothing_is_held()
        assert served.batches == []

    run(artifacts, main)


def test_a_run_that_fails_ends_the_image(artifacts: Path) -> None:
    async def main(served: Served) -> None:
        loaded = await served.load()

        def broken(_: Any, cancellation: Any = None) -> Any:
            raise RuntimeError("out of memory")

        loaded.session.run = broken  # type: ignore[assignment, method-assign]
        with pytest.raises(RuntimeError, match="out of memory"):
            await served.segment(DATA)
        await async_eventually(served.nothing_is_held)

    run(artifacts, main)


def test_too_many_who_wait_are_refused_on_arrival(artifacts: Path) -> None:
    async def main(served: Served) -> None:
        await served.load()
        await served.segment(DATA)
        sizer = served.runner.batcher._queues[TILED].sizer = BatchSizer(1)
        sizer._seconds[1] = deque([10.0])
        served.gate.clear()
        first = asyncio.create_task(served.segment(DATA, timeout_s=30))
        await served.in_a_run(2)
        await async_eventually(lambda: served.runner.batcher.depth(TILED) == 2)
        with pytest.raises(Overloaded):
            await served.segment(DATA, timeout_s=2)
        served.gate.set()
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await async_eventually(served.nothing_is_held)

    run(artifacts, main)
