"""Segment Anything in this process, on the toy: how often its graphs run, who may leave, what an unload leaves."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from PIL import Image

from ekiben.errors import BadInput, TooLarge
from models.inference_requests import AutoMaskRequest, InferenceRequest, MaskRequest
from models.masks.rle import encode
from models.sam.auto_options import AutoOptions
from models.sam.prompts import Prompt
from tests import toy_sam
from tests.services.runners.sam.served import AREAS, BOXES, CLICK, IMAGE, SAM, SAME_PIXELS, SIZE, Run, Served, encoded

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
