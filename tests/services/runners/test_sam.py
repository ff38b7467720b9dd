"""Segment Anything in this process, on the toy: how often its graphs run, who may leave, what an unload leaves."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ekiben.errors import BadInput, DeadlineExceeded, TooLarge
from ekiben.settings import Settings
from models.engine import engine
from models.inference_requests import AutoMaskRequest, InferenceRequest, MaskRequest, MaskResponse
from models.masks.rle import encode
from models.model_key import ModelKey
from models.sam.auto_options import AutoOptions
from models.sam.graphs import Decoded, Features
from models.sam.loader import LoadedSam
from models.sam.prompts import Prompt
from services.runners.local import LocalRunner
from tests import toy_models, toy_sam

SAM, AREAS = ModelKey("local", "sam_toy", 1), ModelKey("local", "areas", 1)
SIZE = (320, 200)
BOXES = toy_sam.boxes_of(*SIZE)
CLICK = Prompt(((*toy_sam.middle(BOXES[0]), 1),))


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifacts")
    toy_sam.sam(folder / "sam_toy")
    toy_models.segmenter(folder / "areas")
    return folder


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


IMAGE = encoded(toy_sam.shapes(*SIZE))
SAME_PIXELS = encoded(toy_sam.shapes(*SIZE), "BMP")


class Served:
    """A runner on the toys, of which every run of a graph is counted and can be held at a gate."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.encoded = self.decoded = self.prompts = 0
        self.encode_gate, self.decode_gate = threading.Event(), threading.Event()
        self.encode_gate.set()
        self.decode_gate.set()
        self.entered = threading.Semaphore(0)
        self.closed: list[LoadedSam] = []
        given = {"home": folder, "threads": 2, "device": "cpu"} | settings
        self.runner = LocalRunner(Settings(**given), lambda key: folder / key.name)

    async def load(self) -> LoadedSam:
        await self.runner.load(SAM)
        sam = self.runner.engine.lease(SAM)
        self.runner.engine.release(sam)
        assert isinstance(sam, LoadedSam)
        self._spy(sam)
        return sam

    def _spy(self, sam: LoadedSam) -> None:
        graphs = sam.graphs
        encode_, decode_, close = graphs.encode, graphs.decode, graphs.close

        def spied_encode(pixels: Any, cancellation: Any = None) -> list[Features]:
            self.encoded += 1
            self.entered.release()
            assert self.encode_gate.wait(20)
            return encode_(pixels, cancellation)

        def spied_decode(features: Features, coords: Any, labels: Any, **more: Any) -> Decoded:
            self.decoded += 1
            self.prompts += len(coords)
            self.entered.release()
            assert self.decode_gate.wait(20)
            return decode_(features, coords, labels, **more)

        def spied_close() -> None:
            self.closed.append(sam)
            close()

        graphs.encode, graphs.decode, graphs.close = (  # type: ignore[method-assign]
            spied_encode,
            spied_decode,
            spied_close,
        )

    @property
    def users(self) -> int:
        entry = self.runner.engine._entries[SAM]
        return entry.users

    async def masks(self, *prompts: Prompt, image: bytes = IMAGE, timeout_s: float = 20, **more: Any) -> MaskResponse:
        answer, _ = await self.runner.masks(SAM, MaskRequest(image, prompts, **more), time.monotonic() + timeout_s)
        return answer

    async def auto(self, points: int = 8, image: bytes = IMAGE, timeout_s: float = 20, **options: Any) -> Any:
        request = AutoMaskRequest(image, AutoOptions(points_per_side=points, **options))
        answer, _ = await self.runner.auto_masks(SAM, request, time.monotonic() + timeout_s)
        return answer

    async def in_a_graph(self) -> None:
        """Until one more run has begun."""
        assert await asyncio.to_thread(self.entered.acquire, True, 10)


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
                await until(lambda: served.users == 0)
            finally:
                served.encode_gate.set()
                served.decode_gate.set()
                await served.runner.close()

        asyncio.run(whole())

    return run


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.002)


Run = Callable[..., None]


# ---- answers ----


def test_masks_of_a_click_and_a_box(run: Run) -> None:
    async def main(served: Served) -> None:
        image = toy_sam.shapes(*SIZE)
        x0, y0, x1, y1 = map(float, BOXES[1])
        answer = await served.masks(CLICK, Prompt(box=(x0, y0, x1, y1)), keep_logits=True)
        given: list[dict[str, Any]] = [{"points": CLICK.points}, {"box": BOXES[1]}]
        for row, one in zip(answer.results, given, strict=True):
            for mask, expected in zip(row, toy_sam.expected_masks(image, **one), strict=True):
                assert mask.rle == encode(expected.mask)
                assert mask.predicted_iou == pytest.approx(expected.predicted_iou, abs=1e-5)
                assert mask.logits is not None and mask.logits.shape == (256, 256)
        (single,), *_ = (await served.masks(CLICK, multimask=False)).results
        (expected,) = toy_sam.expected_masks(image, points=CLICK.points, multimask=False)
        assert single.rle == encode(expected.mask) and single.logits is None

    run(main)


def test_more_prompts_than_share_a_run(run: Run) -> None:
    async def main(served: Served) -> None:
        prompts = [Prompt(((*toy_sam.middle(BOXES[n % 4]), 1),)) for n in range(50)]
        answer = await served.masks(*prompts)
        assert len(answer.results) == 50 and served.decoded == 4 and served.prompts == 50
        alone = [(await served.masks(prompt)).results[0] for prompt in prompts[:4]]
        assert [row == alone[n % 4] for n, row in enumerate(answer.results)] == [True] * 50
        assert served.encoded == 1

    run(main)


def test_no_prompt_is_the_whole_image(run: Run) -> None:
    async def main(served: Served) -> None:
        answer = await served.masks()
        whole = await served.masks(Prompt(box=(0.0, 0.0, float(SIZE[0]), float(SIZE[1]))))
        assert answer.results == whole.results and len(answer.results) == 1

    run(main)


def test_what_is_outside_is_refused_with_its_number(run: Run) -> None:
    async def main(served: Served) -> None:
        with pytest.raises(BadInput, match="prompt 1: the point"):
            await served.masks(CLICK, Prompt(((320, 10, 1),)))
        with pytest.raises(TooLarge):
            await served.masks(image=encoded(Image.new("RGB", (650, 10))))
        assert (served.decoded, served.users) == (0, 0)

    run(main)


def test_tiny_images(run: Run) -> None:
    async def main(served: Served) -> None:
        for size in ((1, 1), (3, 7), (7, 3), (20, 20), (1, 64)):
            image = encoded(toy_sam.shapes(*size))
            (row,) = (await served.masks(image=image)).results
            assert {(mask.rle.width, mask.rle.height) for mask in row} == {size}
            assert (await served.auto(2, image, pred_iou_thresh=0, stability_score_thresh=0)).image.width == size[0]

    run(main)


@pytest.mark.parametrize("size", [(20, 20), (5, 5), (9, 3)], ids=str)
def test_more_layers_of_crops_than_an_image_has_pixels_for(run: Run, size: tuple[int, int]) -> None:
    async def main(served: Served) -> None:
        image = encoded(toy_sam.shapes(*size))
        try:
            answer = await served.auto(2, image, crop_n_layers=4)
        except BadInput:
            return
        assert (answer.image.width, answer.image.height) == size

    run(main)


def test_each_family_answers_its_own_asks(run: Run) -> None:
    async def main(served: Served) -> None:
        late = time.monotonic() + 20
        with pytest.raises(BadInput, match="sam_toy version 1 answers prompts, not InferenceRequest"):
            await served.runner.infer(SAM, InferenceRequest(IMAGE), late)
        with pytest.raises(BadInput, match="areas version 1 does not answer prompts"):
            await served.runner.masks(AREAS, MaskRequest(IMAGE), late)
        with pytest.raises(BadInput, match="areas version 1 does not answer prompts"):
            await served.runner.auto_masks(AREAS, AutoMaskRequest(IMAGE, AutoOptions()), late)
        assert [entry.users for entry in served.runner.engine._entries.values()] == [0, 0]
        answered = await served.runner.infer(AREAS, InferenceRequest(IMAGE), late)
        assert answered.answer.image.width == SIZE[0]
        counts = await served.runner.counters(SAM)
        assert (counts["predictions"], counts["batches"]) == (0, 0)

    run(main)


# ---- one encoder run ----


def test_ten_at_once_run_the_encoder_once(run: Run) -> None:
    async def main(served: Served) -> None:
        answers = await asyncio.gather(*(served.masks(CLICK) for _ in range(10)))
        assert served.encoded == 1 and served.decoded == 10
        assert all(answer.results == answers[0].results for answer in answers)
        assert not any(answer.embedding.cached for answer in answers)
        again = await served.masks(CLICK)
        assert again.embedding.cached and served.encoded == 1
        assert again.embedding.encode_ms == answers[0].embedding.encode_ms > 0
        counts = await served.runner.counters(SAM)
        assert (counts["predictions"], counts["batches"], counts["waiting"]) == (11, 1, 0)

    run(main)


def test_masks_and_automatic_masks_share_an_embedding(run: Run) -> None:
    async def main(served: Served) -> None:
        auto, masks = await asyncio.gather(served.auto(4), served.masks(CLICK))
        assert served.encoded == 1 and len(auto.masks) > 0 and len(masks.results) == 1

    run(main)


def test_the_same_pixels_in_another_file(run: Run) -> None:
    async def main(served: Served) -> None:
        await served.masks(CLICK)
        other = await served.masks(CLICK, image=SAME_PIXELS)
        assert served.encoded == 1 and other.embedding.cached
        assert other.image.mime_type == "image/bmp"
        assert (await served.masks(CLICK)).image.mime_type == "image/png"

    run(main)


def test_both_files_at_once(run: Run) -> None:
    async def main(served: Served) -> None:
        await asyncio.gather(*(served.masks(CLICK, image=image) for image in (IMAGE, SAME_PIXELS)))
        assert served.encoded == 1  # the second waits for the only encoder, and finds it then

    run(main)


def test_without_a_cache_every_ask_encodes(run: Run) -> None:
    async def main(served: Served) -> None:
        await served.masks(CLICK)
        await served.masks(CLICK)
        assert served.encoded == 2 and served.runner.sam.cache.used_bytes == 0
        await asyncio.gather(*(served.masks(CLICK) for _ in range(5)))
        assert served.encoded == 3

    run(main, cache_mb=0)


def test_an_image_that_cannot_be_read_is_everybody_s_error(run: Run) -> None:
    async def main(served: Served) -> None:
        broken = IMAGE[:200]
        errors = await asyncio.gather(*(served.masks(CLICK, image=broken) for _ in range(4)), return_exceptions=True)
        assert all(isinstance(error, BadInput) for error in errors)
        assert (served.encoded, served.users) == (0, 0)

    run(main)


# ---- who leaves ----


def test_one_of_several_leaves_and_the_others_are_answered(run: Run) -> None:
    async def main(served: Served) -> None:
        served.encode_gate.clear()
        callers = [asyncio.create_task(served.masks(CLICK)) for _ in range(4)]
        await served.in_a_graph()
        callers[0].cancel()  # the one who began
        callers[2].cancel()
        await asyncio.sleep(0.02)
        served.encode_gate.set()
        answers = await asyncio.gather(*callers, return_exceptions=True)
        assert [isinstance(answer, MaskResponse) for answer in answers] == [False, True, False, True]
        assert served.encoded == 1 and served.decoded == 2

    run(main)


def test_the_only_caller_leaves_before_its_turn(run: Run) -> None:
    async def main(served: Served) -> None:
        served.encode_gate.clear()
        first = asyncio.create_task(served.masks(CLICK))
        await served.in_a_graph()
        other = encoded(toy_sam.shapes(100, 100))
        second = asyncio.create_task(served.masks(image=other))
        await until(lambda: served.runner.sam.depth(SAM) == 1)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        served.encode_gate.set()
        await first
        await until(lambda: served.users == 0)
        assert served.encoded == 1  # that of the first
        assert not (await served.masks(image=other)).embedding.cached

    run(main)


def test_the_only_caller_leaves_while_it_is_encoded(run: Run) -> None:
    async def main(served: Served) -> None:
        served.encode_gate.clear()
        caller = asyncio.create_task(served.masks(CLICK))
        await served.in_a_graph()
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        served.encode_gate.set()
        await until(lambda: served.users == 0)
        # It was made; it would be a pity to throw it away.
        assert (await served.masks(CLICK)).embedding.cached and (served.encoded, served.decoded) == (1, 1)

    run(main)


def test_who_has_more_time_is_not_bound_by_who_has_less(run: Run) -> None:
    async def main(served: Served) -> None:
        served.encode_gate.clear()
        hasty = asyncio.create_task(served.masks(CLICK, timeout_s=0.15))
        await served.in_a_graph()
        patient = asyncio.create_task(served.masks(CLICK))
        with pytest.raises(DeadlineExceeded):
            await hasty
        await asyncio.sleep(0.02)
        assert not patient.done()
        served.encode_gate.set()
        assert len((await patient).results) == 1
        assert served.encoded == 1  # the first run's embedding is found by the second

    run(main)


def test_who_has_less_time_does_not_wait_for_who_has_more(run: Run) -> None:
    async def main(served: Served) -> None:
        served.encode_gate.clear()
        patient = asyncio.create_task(served.masks(CLICK))
        await served.in_a_graph()
        started = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await served.masks(CLICK, timeout_s=0.1)
        assert time.monotonic() - started < 2
        served.encode_gate.set()
        assert len((await patient).results) == 1 and served.encoded == 1

    run(main)


def test_a_grid_that_is_cancelled_computes_no_more(run: Run) -> None:
    async def main(served: Served) -> None:
        served.decode_gate.clear()
        caller = asyncio.create_task(served.auto(32))
        await served.in_a_graph()
        await served.in_a_graph()
        await served.in_a_graph()  # the encoder and both slots
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        served.decode_gate.set()
        await until(lambda: served.users == 0)
        assert served.decoded == 2 and served.prompts == 8
        await asyncio.sleep(0.05)
        assert served.decoded == 2

    run(main)


def test_a_grid_that_is_late_computes_no_more(run: Run) -> None:
    async def main(served: Served) -> None:
        await served.masks(CLICK)
        served.decode_gate.clear()
        with pytest.raises(DeadlineExceeded):
            await served.auto(32, timeout_s=0.2)
        before = served.decoded
        assert before == 3  # that of the click and one in each slot
        served.decode_gate.set()
        await until(lambda: served.users == 0)
        await asyncio.sleep(0.05)
        assert served.decoded == before

    run(main)


def test_a_deadline_at_any_time_is_a_deadline(run: Run) -> None:
    """Not a server that is overloaded: nobody else asks it anything."""

    async def main(served: Served) -> None:
        await served.auto(16)  # what a run costs has been learned
        for timeout_s in np.linspace(0.01, 0.06, 40):
            with pytest.raises(DeadlineExceeded):
                await served.auto(64, timeout_s=float(timeout_s))
        await until(lambda: served.users == 0)

    run(main)


def test_a_click_does_not_wait_for_a_grid(run: Run) -> None:
    async def main(served: Served) -> None:
        grid = asyncio.create_task(served.auto(64))
        await until(lambda: served.decoded > 20)
        await served.masks(CLICK)
        assert not grid.done() and served.decoded < 900
        grid.cancel()
        await asyncio.gather(grid, return_exceptions=True)

    run(main)


# ---- unloading ----


def test_unloading_lets_a_grid_finish_and_leaves_nothing(run: Run) -> None:
    async def main(served: Served) -> None:
        whole = await served.auto(16)
        cache = served.runner.sam.cache
        assert len(cache) == 1 and cache.used_bytes > 0
        served.decode_gate.clear()
        grid = asyncio.create_task(served.auto(16, crop_n_layers=0))
        click = asyncio.create_task(served.masks(CLICK))
        await served.in_a_graph()
        assert await served.runner.unload(SAM) is True
        assert served.closed == [] and served.runner.engine.try_lease(SAM) is None
        served.decode_gate.set()
        assert [mask.rle for mask in (await grid).masks] == [mask.rle for mask in whole.masks]
        assert len((await click).results) == 1
        await until(lambda: len(served.closed) == 1)
        sam = served.closed[0]
        assert (sam.detached, sam.users_left) == (True, 0)
        assert (len(cache), cache.used_bytes, served.runner.sam._open) == (0, 0, {})
        await asyncio.sleep(0.05)
        assert len(served.closed) == 1

    run(main)


def test_unloading_during_the_encoder_leaves_no_embedding(run: Run) -> None:
    async def main(served: Served) -> None:
        served.encode_gate.clear()
        callers = [asyncio.create_task(served.masks(CLICK)) for _ in range(3)]
        await served.in_a_graph()
        assert await served.runner.unload(SAM)
        callers[0].cancel()
        await asyncio.sleep(0.01)
        served.encode_gate.set()
        answers = await asyncio.gather(*callers, return_exceptions=True)
        assert [isinstance(answer, MaskResponse) for answer in answers] == [False, True, True]
        await until(lambda: len(served.closed) == 1)
        assert served.runner.sam.cache.used_bytes == 0

    run(main)


def test_loaded_again_while_the_old_one_is_still_used(run: Run) -> None:
    async def main(served: Served) -> None:
        await served.masks(CLICK)
        served.decode_gate.clear()
        old = asyncio.create_task(served.auto(8))
        await served.in_a_graph()
        await served.in_a_graph()
        assert await served.runner.unload(SAM)
        sam = await served.load()
        assert not sam.detached
        new = asyncio.create_task(served.masks(CLICK))
        await asyncio.sleep(0.02)
        served.decode_gate.set()
        assert len((await new).results) == 1 and len((await old).masks) > 0
        await until(lambda: len(served.closed) == 1)
        assert served.closed[0] is not sam
        assert len((await served.masks(CLICK)).results) == 1  # its lanes are its own
        assert await served.runner.unload(SAM)
        await until(lambda: len(served.closed) == 2)
        assert served.runner.sam.cache.used_bytes == 0 and served.runner.sam._open == {}

    run(main)


def test_an_unload_takes_no_other_model_s_embeddings(run: Run) -> None:
    async def main(served: Served) -> None:
        other = ModelKey("local", "sam_toy", 2)
        await served.runner.load(other)
        late = time.monotonic() + 20
        await served.masks(CLICK)
        await served.runner.masks(other, MaskRequest(IMAGE, (CLICK,)), late)
        assert len(served.runner.sam.cache) == 2
        assert await served.runner.unload(SAM)
        assert len(served.runner.sam.cache) == 1
        answer, _ = await served.runner.masks(other, MaskRequest(IMAGE, (CLICK,)), late)
        assert answer.embedding.cached

    run(main)
