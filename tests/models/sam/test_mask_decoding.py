"""Masks of prompts read from the decoder's output, against the toy's own answers in numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ekiben.errors import TooLarge
from models.artifact import read_manifest
from models.preprocess import Preprocessor
from models.results import ImageInfo
from models.sam.embedding_cache import Embedding
from models.sam.graphs import Decoded, SamGraphs
from models.sam.mask_decoding import decode_prompts, read_masks, refuse_strip
from models.sam.prompts import Prompt
from models.sam.upsampling import Upsampler
from tests import toy_sam as toy

SIZE = (320, 213)
"""Width and height: neither a power of two, nor is one side a multiple of the other."""

IMAGE = toy.shapes(*SIZE)
BOXES = toy.boxes_of(*SIZE)
CLICKS = [toy.middle(box) for box in BOXES]


@pytest.fixture(scope="module")
def embedding(folder: Path, graphs: SamGraphs) -> Embedding:
    return embedded(IMAGE, folder, graphs)


def embedded(image: Image.Image, folder: Path, graphs: SamGraphs) -> Embedding:
    pixels = np.asarray(Preprocessor(read_manifest(folder))(image), np.float32)
    return Embedding(ImageInfo(*image.size, "image/png"), graphs.encode(pixels[None])[0], 0.0, "")


def click(number: int, mask_input: np.ndarray | None = None) -> Prompt:
    x, y = CLICKS[number]
    return Prompt(((float(x), float(y), 1),), None, mask_input)


def answer(number: int, **options: object) -> list[toy.Expected]:
    return toy.expected_masks(IMAGE, [(*CLICKS[number], 1)], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("multimask", [False, True])
def test_each_prompt_gets_its_own_masks(multimask: bool, wide: bool, graphs: SamGraphs, embedding: Embedding) -> None:
    """A click, a box, and a click with a refused one, decoded together; the numbers are those of each alone."""
    x, y = CLICKS[2]
    box = tuple(map(float, BOXES[1]))
    prompts = [click(0), Prompt(box=box), Prompt(((x, y, 1), (*CLICKS[3], 0)))]  # type: ignore[arg-type]
    expected = [
        answer(0, multimask=multimask),
        toy.expected_masks(IMAGE, box=box, multimask=multimask),
        toy.expected_masks(IMAGE, [(x, y, 1), (*CLICKS[3], 0)], multimask=multimask),
    ]
    decoded = decode_prompts(graphs, embedding, prompts, wide=wide)
    rows = read_masks(decoded, Upsampler(SIZE[1], SIZE[0]), multimask=multimask, keep_logits=False)
    assert [len(row) for row in rows] == [3 if multimask else 1] * 3
    for row, wanted in zip(rows, expected, strict=True):
        for mask, right in zip(row, wanted, strict=True):
            assert np.array_equal(mask.rle.decode(), right.mask)
            assert (mask.rle.height, mask.rle.width) == SIZE[::-1]
            assert mask.predicted_iou == pytest.approx(right.predicted_iou, abs=1e-5)
            stable = (right.logits > 1).sum() / (right.logits > -1).sum()
            assert mask.stability_score == pytest.approx(stable, abs=1e-3)
            assert mask.logits is None
    assert rows[0][0].rle != rows[2][0].rle


def test_a_mask_input_changes_its_own_prompt_alone(graphs: SamGraphs, embedding: Embedding) -> None:
    """Logits that push everything out of the mask of one prompt leave the others as they are without it."""
    push = np.full((256, 256), -20, np.float32)
    push[:, :64] = 5
    upsampler = Upsampler(SIZE[1], SIZE[0])

    def masks(*prompts: Prompt) -> list[np.ndarray]:
        decoded = decode_prompts(graphs, embedding, prompts, wide=False)
        return [row[0].rle.decode() for row in read_masks(decoded, upsampler, multimask=False, keep_logits=False)]

    plain = [answer(number, multimask=False)[0].mask for number in (0, 1)]
    pushed = [answer(number, multimask=False, mask_input=push)[0].mask for number in (0, 1)]
    assert all((a != b).any() for a, b in zip(plain, pushed, strict=True))
    assert np.array_equal(masks(click(0), click(1)), plain)
    assert np.array_equal(masks(click(0), click(1, push)), [plain[0], pushed[1]])
    assert np.array_equal(masks(click(0, push), click(1)), [pushed[0], plain[1]])
    assert np.array_equal(masks(click(0, push), click(1, push)), pushed)


def test_a_mask_input_needs_no_point(graphs: SamGraphs, embedding: Embedding) -> None:
    """The toy's answer without points is what is black, which the mask input enlarges."""
    lift = np.full((256, 256), 20, np.float32)
    decoded = decode_prompts(graphs, embedding, [Prompt(mask_input=lift), click(0)], wide=False)
    alone, beside = read_masks(decoded, Upsampler(SIZE[1], SIZE[0]), multimask=False, keep_logits=False)
    assert np.array_equal(alone[0].rle.decode(), toy.expected_masks(IMAGE, mask_input=lift, multimask=False)[0].mask)
    assert np.array_equal(beside[0].rle.decode(), answer(0, multimask=False)[0].mask)


def test_points_of_a_strip_are_scaled_by_the_ratio_of_their_own_axis(folder: Path, graphs: SamGraphs) -> None:
    """1000 x 17 becomes 1024 x 17: the columns are scaled by 1.024, the rows by 1."""
    strip = Image.new("RGB", (1000, 17), toy.GROUND)
    strip.paste(toy.COLOURS[0], (985, 0, 1000, 17))
    decoded = decode_prompts(graphs, embedded(strip, folder, graphs), [Prompt(((990.0, 8.0, 1),))], wide=False)
    ((mask,),) = read_masks(decoded, Upsampler(17, 1000), multimask=False, keep_logits=False)
    assert np.array_equal(mask.rle.decode(), toy.expected_masks(strip, [(990, 8, 1)], multimask=False)[0].mask)
    assert mask.rle.decode()[8, 990]
    assert not mask.rle.decode()[:, :900].any()


def flat(*levels: float) -> Decoded:
    """One prompt with four masks, each of one logit; the predicted IoUs are 0.1, 0.2, 0.3 and 1.4."""
    logits = np.broadcast_to(np.array(levels, np.float32)[:, None, None], (4, 256, 256))
    return Decoded(np.array([[0.1, 0.2, 0.3, 1.4]], np.float32), np.array([0]), logits[None].copy())


def test_tokens_are_read_in_order_with_their_scores() -> None:
    decoded = flat(0.5, 3, -0.5, -3)
    ((single,),) = read_masks(decoded, Upsampler(3, 5), multimask=False, keep_logits=False)
    # Above 0, but nowhere above 1: none of the pixels is stable.
    assert (single.rle.area, single.predicted_iou, single.stability_score) == (15, pytest.approx(0.1), 0.0)
    ((sure, unsure, absent),) = read_masks(decoded, Upsampler(3, 5), multimask=True, keep_logits=False)
    assert (sure.rle.area, sure.predicted_iou, sure.stability_score) == (15, pytest.approx(0.2), 1.0)
    assert (unsure.rle.area, unsure.predicted_iou, unsure.stability_score) == (0, pytest.approx(0.3), 0.0)
    # Empty at any threshold: no stability; an estimate above 1 is passed on as it is.
    assert (absent.rle.area, absent.predicted_iou, absent.stability_score) == (0, pytest.approx(1.4), None)
    assert (absent.rle.height, absent.rle.width) == (3, 5)


def test_kept_logits_are_copies_of_the_masks_they_belong_to() -> None:
    decoded = flat(1, 2, 3, 4)
    (row,) = read_masks(decoded, Upsampler(3, 5), multimask=True, keep_logits=True)
    decoded.logits[:] = 0  # as when the decoder's buffer is used again
    assert [mask.logits is not None and np.unique(mask.logits).tolist() for mask in row] == [[2.0], [3.0], [4.0]]
    assert {mask.logits.shape for mask in row if mask.logits is not None} == {(256, 256)}


@pytest.mark.parametrize("size", [(1, 1), (64, 1), (1, 64), (6400, 100)])
def test_a_ratio_of_sides_up_to_64_is_taken(size: tuple[int, int]) -> None:
    refuse_strip(*size)


@pytest.mark.parametrize("size", [(65, 1), (1, 65), (6401, 100)])
def test_a_longer_strip_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(TooLarge) as caught:
        refuse_strip(*size)
    assert str(caught.value) == f"the image is {size[0]} x {size[1]}; this model takes sides of 1 : 64 at most"
