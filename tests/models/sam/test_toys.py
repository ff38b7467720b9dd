"""The toy Segment Anything says what its twins in numpy say."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.artifact import DECODER, ENCODER, MASK_PROMPT, read_manifest, verify
from models.preprocess import Preprocessor
from models.sam.graphs import FEATURES, Features, SamGraphs
from tests import toy_sam as toy
from tests.toy_sam_graphs import IOU

IMAGE = toy.shapes(640, 427)
BOXES = toy.boxes_of(640, 427)
PROMPTS: dict[str, tuple[list[tuple[float, ...]], tuple[float, ...] | None]] = {
    "click": ([(*toy.middle(BOXES[0]), 1)], None),
    "ground": ([(2, 2, 1)], None),
    "two clicks": ([(*toy.middle(BOXES[0]), 1), (*toy.middle(BOXES[1]), 1)], None),
    "background": ([(*toy.middle(BOXES[2]), 1), (*toy.middle(BOXES[2]), 0)], None),
    "only background": ([(3, 3, 0)], None),
    "box": ([], BOXES[1]),
    "tight box": ([], (BOXES[1][0] + 30, BOXES[1][1] + 20, BOXES[1][2] - 30, BOXES[1][3] - 10)),
    "box and point": ([(*toy.middle(BOXES[3]), 1)], (0, 0, 640, 427)),
    "corner": ([(639, 426, 1)], None),
    "edge": ([(BOXES[0][0], BOXES[0][1], 1)], None),
}


@pytest.fixture(scope="module")
def features(folder: Path, graphs: SamGraphs) -> Features:
    pixels = np.asarray(Preprocessor(read_manifest(folder))(IMAGE), np.float32)
    return graphs.encode(pixels[None])[0]


def batch(prompts: list[toy.Tokens], extra: tuple[float, ...] = ()) -> tuple[np.ndarray, np.ndarray]:
    """In one batch: a padding point after each, then absent ones with coordinates that must not matter."""
    longest = max(len(p.labels) for p in prompts) + 2
    coords, labels = np.full((len(prompts), longest, 2), 333, np.float32), np.full((len(prompts), longest), -2.0)
    for row, prompt in enumerate(prompts):
        n = len(prompt.labels)
        coords[row, :n], labels[row, :n] = prompt.coords, prompt.labels
        labels[row, n] = -1
    return coords, labels.astype(np.float32)


def test_the_files(folder: Path) -> None:
    manifest = read_manifest(folder)
    verify(folder, manifest)
    assert set(manifest.files) == {ENCODER, MASK_PROMPT, DECODER}
    assert sum(f.bytes for f in manifest.files.values()) < 100_000


def test_cells(features: Features) -> None:
    tokens, keys, values, queries = features.arrays
    cells = toy.cells_of(IMAGE)
    assert tokens.shape == (1, 4096, 8)
    assert np.abs(tokens[0, :, :3].reshape(64, 64, 3) - cells).max() < 1e-5
    assert (keys == tokens[..., :3]).all() and (keys[0] == queries[0].T).all() and not values.any()
    x, y = toy.middle(BOXES[0])
    assert cells[toy._cell_at(np.array([x * 1.6, y * 1.6], np.float32))] == pytest.approx(
        np.array(toy.COLOURS[0]) / 255
    )


def test_prompts_in_one_batch(graphs: SamGraphs, features: Features) -> None:
    cells = toy.cells_of(IMAGE)
    prompts = [toy.tokens_of(IMAGE.size, *prompt) for prompt in PROMPTS.values()]
    decoded = graphs.decode(features, *batch(prompts))
    assert decoded.kept.tolist() == list(range(len(prompts)))
    for name, prompt, iou, logits in zip(PROMPTS, prompts, decoded.iou, decoded.logits, strict=True):
        assert np.abs(iou - toy.iou_of(cells, prompt)).max() < 1e-4, name
        assert np.abs(logits - toy.logits_of(cells, prompt)).max() < 1e-3, name
        alone = graphs.decode(features, prompt.coords[None], prompt.labels[None])
        assert np.abs(alone.logits[0] - logits).max() < 1e-4, name
        own = features.rows(1)
        assert np.array_equal(graphs.decode(own, prompt.coords[None], prompt.labels[None]).iou, alone.iou)
    # What is wanted of a toy: good masks on the rectangles, none on the ground.
    assert decoded.iou[0].tolist() == pytest.approx(IOU)
    assert decoded.iou[1].max() < 0.6
    row, column = (int(v * 256 / 640) for v in reversed(toy.middle(BOXES[2])))
    assert (decoded.logits[3, :, row, column] < 0).all()


def test_survivors(graphs: SamGraphs, features: Features) -> None:
    prompts = [toy.tokens_of(IMAGE.size, [(x, y, 1)]) for x, y in [(2, 2), toy.middle(BOXES[0]), (3, 200)]]
    coords, labels = batch(prompts)
    every = graphs.decode(features, coords, labels)
    some = graphs.decode(features, coords, labels, min_iou=0.88)
    assert some.kept.tolist() == [1]
    assert np.array_equal(some.logits, every.logits[1:2])
    assert np.array_equal(some.iou, every.iou)
    none = graphs.decode(features, coords, labels, min_iou=0.98)
    assert none.kept.shape == (0,) and none.logits.shape == (0, 4, 256, 256) and none.iou.shape == (3, 4)


def test_a_mask_prompt(graphs: SamGraphs, features: Features) -> None:
    cells, prompt = toy.cells_of(IMAGE), toy.tokens_of(IMAGE.size, *PROMPTS["click"])
    masks = np.random.default_rng(5).normal(0, 8, (2, 256, 256)).astype(np.float32)
    masked = graphs.mask_features(features, masks)
    assert all(array.shape == (2, *own.shape[1:]) for array, own in zip(masked.arrays, features.arrays, strict=True))
    decoded = graphs.decode(masked, prompt.coords[None].repeat(2, 0), prompt.labels[None].repeat(2, 0))
    for logits, mask in zip(decoded.logits, masks, strict=True):
        assert np.abs(logits - toy.logits_of(cells, prompt, mask)).max() < 1e-3
        assert np.abs(logits - toy.logits_of(cells, prompt)).max() > 0.5
    assert len(FEATURES) == len(masked.arrays)


def test_masks_are_the_rectangles() -> None:
    for box, image in [(BOXES[0], IMAGE), (toy.boxes_of(300, 500)[3], toy.shapes(300, 500))]:
        for mask in toy.expected_masks(image, [(*toy.middle(box), 1)]):
            truth = np.zeros(image.size[::-1], bool)
            truth[box[1] : box[3], box[0] : box[2]] = True
            assert (mask.mask & truth).sum() / (mask.mask | truth).sum() > 0.85
            assert 0.9 < (mask.logits > 1).sum() / (mask.logits > -1).sum() <= 1


@pytest.mark.parametrize("size", [(640, 427), (427, 640), (1500, 900), (37, 61)])
def test_upsampling_is_the_reference_s(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    resize = torch.nn.functional.interpolate
    logits = np.random.default_rng(1).normal(0, 5, (2, 256, 256))
    width, height = toy.image_size(*size)
    large = resize(torch.from_numpy(logits)[None], (1024, 1024), mode="bilinear", align_corners=False)
    expected = resize(large[..., :height, :width], size[::-1], mode="bilinear", align_corners=False)[0].numpy()
    assert np.abs(toy.upsampled(logits, size) - expected).max() < 1e-9


def test_it_is_fast(graphs: SamGraphs, features: Features) -> None:
    pixels = np.zeros((1, 3, 1024, 1024), np.float32)
    coords, labels = batch([toy.tokens_of(IMAGE.size, [(5, 5, 1)])] * 8)

    def best(run: Callable[[], object]) -> float:
        took = []
        for _ in range(5):
            started = time.process_time()
            run()
            took.append(time.process_time() - started)
        return min(took)

    assert best(lambda: graphs.encode(pixels)) < 0.1
    assert best(lambda: graphs.decode(features, coords, labels)) / 8 < 0.02
