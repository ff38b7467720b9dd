"""Images that are slow to decode, through the runner of a process: answered as any other, within the memory budget."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ekiben.settings import Settings
from models import image_batch_steps
from models.engine.engine import ModelKey
from models.image_cost import image_cost
from models.images import DecodedImage, open_image
from models.inference_requests import InferenceRequest
from services.concurrency.memory_budget import MemoryBudget
from services.runners.local import LocalRunner
from tests import toy_models
from tests.models.medical.dicom_files import dicom
from tests.toy_models import encoded, noise

CLASSIFIER, SEGMENTER = ModelKey("local", "classifier", "1"), ModelKey("local", "segmenter", "1")
LARGE = encoded(noise(1100, 1000), "JPEG")
GREY = np.asarray(noise(40, 30).convert("L"))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    toy_models.classifier(folder / CLASSIFIER.name)
    toy_models.segmenter(folder / SEGMENTER.name)
    return folder


@asynccontextmanager
async def serving(artifacts: Path, memory: MemoryBudget | None = None) -> AsyncIterator[LocalRunner]:
    settings = Settings(home=artifacts, threads=2, device="cpu")
    runner = LocalRunner(settings, lambda key: artifacts / key.name, memory)
    try:
        yield runner
    finally:
        await runner.close()


@pytest.mark.parametrize("data", [LARGE, dicom(GREY)], ids=["a large JPEG", "DICOM"])
@pytest.mark.parametrize("key", [CLASSIFIER, SEGMENTER], ids=["classified", "segmented"])
def test_the_answer_is_that_of_its_pixels(artifacts: Path, data: bytes, key: ModelKey) -> None:
    """Against a request that brings the pixels in a batch, which is the quick path once they are few."""
    assert image_cost(data).slow

    async def main() -> None:
        async with serving(artifacts) as runner:
            deadline = time.monotonic() + 60
            request = InferenceRequest(data, top_k=4, tensors=("class_map",) if key == SEGMENTER else ())
            answer, timing = await runner.infer(key, request, deadline)
            steps = runner._queues[key][1].work
            _, prepared = steps.prepare(request)
            (output,) = steps.run([prepared], None)
            expected = steps.finish(output, prepared, request)
            assert answer.scores == expected.scores
            assert answer.areas == expected.areas
            assert answer.image == expected.image
            for name, values in expected.tensors.items():
                np.testing.assert_array_equal(answer.tensors[name], values)
            assert timing.prepare_ms > 0
            assert runner.memory.held == 0

    asyncio.run(main())


def test_images_that_do_not_fit_together_are_decoded_one_after_the_other(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def counted(image: bytes | NDArray[np.uint8]) -> DecodedImage:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        try:
            time.sleep(0.02)
            return open_image(image)
        finally:
            with lock:
                now -= 1

    monkeypatch.setattr(image_batch_steps, "open_image", counted)

    async def main(memory: MemoryBudget) -> int:
        nonlocal most
        most = 0
        async with serving(artifacts, memory) as runner:
            deadline = time.monotonic() + 60
            requests = [runner.infer(CLASSIFIER, InferenceRequest(LARGE, top_k=4), deadline) for _ in range(6)]
            answers = await asyncio.gather(*requests)
            assert len({answer.scores for answer, _ in answers}) == 1
            assert memory.held == 0
        return most

    cost = image_cost(LARGE).bytes
    assert asyncio.run(main(MemoryBudget(cost))) == 1
    assert asyncio.run(main(MemoryBudget(100 * cost))) == 2  # as many as there are threads
