"""The images and parameters of the jobs under test, a runner that waits, and a check of the stored files."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Any

import pytest

from ekiben.ids import LOCAL_OWNER
from services.inference import operations
from tests import toy_models, toy_sam
from tests.services.jobs.job_homes import AtWork
from tests.waiting import async_eventually

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0))
SOLIDS = [toy_models.encoded(toy_models.solid(color)) for color in COLORS]
IMAGES = [
    *SOLIDS,
    toy_models.encoded(toy_models.noise(40, 30, seed=1)),
    toy_models.encoded(toy_models.noise(70, 50), "JPEG"),
]
COLOURS = {"model": "colours"}
AREAS = {"model": "areas"}
SIZE = (120, 90)
SHAPES = toy_models.encoded(toy_sam.shapes(*SIZE))
CLICKS = [{"points": [[*toy_sam.middle(box), 1]]} for box in toy_sam.boxes_of(*SIZE)[:2]]

CLAIM_SIZE = operations.OPERATIONS["segment"].claim_size
MORE = [IMAGES[number % len(IMAGES)] for number in range(CLAIM_SIZE + 2)]
"""More than one claim takes."""

Run = Callable[..., None]


class Held:
    """The inference of a platform, which stops before it answers. ``entered`` counts those who came so far."""

    def __init__(self, bench: AtWork, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = asyncio.Event()
        self.entered = self.inside = self.most = 0
        infer = bench.app_state.runner.infer

        async def held(*given: Any) -> Any:
            self.entered += 1
            self.inside += 1
            self.most = max(self.most, self.inside)
            try:
                await self.open.wait()
                return await infer(*given)
            finally:
                self.inside -= 1

        monkeypatch.setattr(bench.app_state.runner, "infer", held)

    async def until(self, entered: int) -> None:
        await async_eventually(lambda: self.entered >= entered)


def check_files(bench: AtWork, job_id: str) -> int:
    """Every file of the job's answers is stored as its row says, and nothing besides them and the images."""
    items = bench.items(job_id)
    files = [file for made in bench.records.artifacts(LOCAL_OWNER, items).values() for file in made]
    for file in files:
        data = bench.app_state.store.get(file.storage_key)
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256)
    images = [bench.app_state.records.image(LOCAL_OWNER, item.image_id).storage_key for item in items if item.image_id]
    waiting = [item.storage_key for item in items if item.storage_key]
    assert bench.blobs() == {*images, *waiting, *(file.storage_key for file in files)}
    return len(files)
