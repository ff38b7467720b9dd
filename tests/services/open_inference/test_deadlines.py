"""The deadline of an infer request is that of all its images together, by a clock that the test sets."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ekiben.errors import DeadlineExceeded
from models.engine import engine
from services.open_inference import inference
from services.open_inference.inference import InferRequest, OpenInference
from services.open_inference.tensors import Tensor
from tests import toy_models
from tests.services.jobs.job_homes import AtWork, at_work, make_home

MANY = 100
"""Images, more than are computed at a time."""

BEGUN = 70
"""Images that the clock leaves time to begin; they are more than are computed at a time, too."""

LONG_S = 600.0
"""The step of the clock; an image itself has so many seconds of real time."""


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that goes on by LONG_S whenever it is read: when a request comes, and when one of its images begins."""
    read: list[float] = []
    clock = itertools.count(1000.0, LONG_S)

    def monotonic() -> float:
        read.append(next(clock))
        return read[-1]

    monkeypatch.setattr(engine, "reclaim_memory", lambda: None)
    monkeypatch.setattr(inference, "time", SimpleNamespace(monotonic=monotonic))
    yield read


def test_it_is_that_of_the_whole_batch(begun: list[float], tmp_path: Path) -> None:
    """Each image would be in time for itself, counted from when its turn comes."""
    images = np.array([toy_models.encoded(toy_models.noise(24, 24, seed)) for seed in range(MANY)], object)

    async def main(bench: AtWork) -> None:
        protocol = OpenInference(bench.app_state.inference)
        before = bench.rows(), bench.blobs()

        def request(steps: float) -> InferRequest:
            limit = bench.app_state.inference
            assert limit.timeout_s >= (MANY + 2) * LONG_S
            return InferRequest("colours", "", [Tensor("image", images)], timeout_s=steps * LONG_S)

        with pytest.raises(DeadlineExceeded, match="longer than its deadline"):
            await protocol.infer(request(BEGUN + 0.5))
        assert BEGUN < len(begun) < MANY  # the first that was late ended the others
        assert (bench.rows(), bench.blobs()) == before
        begun.clear()
        answer = await protocol.infer(request(MANY + 1))
        assert len(begun) == MANY + 1 and answer.outputs[0].shape[0] == MANY
        assert bench.rows()["predictions"] == MANY

    async def whole() -> None:
        async with at_work(make_home(tmp_path / "template"), tmp_path, timeout_s=1e6) as bench:
            await main(bench)

    asyncio.run(whole())
