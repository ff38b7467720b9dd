"""Class per pixel: enlarged scores against torch, the sigmoid rule, areas, colours and overlays pixel by pixel."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from models.artifact import voc_palette
from models.images import DecodedImage
from models.inference_requests import RENDERS, InferenceRequest
from models.results import Segmentation
from models.segmenter import Segmenter, color_mask, enlarge_and_choose, index_mask, overlay, render
from tests import toy_models
from tests.models.peak import peak_growth_bytes

BLACK, RED, GREEN, BLUE = (0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    return Segmenter(toy_models.segmenter(tmp_path_factory.mktemp("toy")))


def smooth_scores(channels: int, height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """Logits that vary as a network's do: coarse blobs and a little grain."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 4, (channels, 7, 7)).astype(np.float32)
    planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in coarse]
    return (np.stack([np.asarray(p) for p in planes]) + rng.normal(0, 0.3, (channels, height, width))).astype(
        np.float32
    )


def stripes(*colors: tuple[int, int, int], width: int = 6, height: int = 8) -> Image.Image:
    """Vertical stripes, each ``width`` wide."""
    return Image.fromarray(np.repeat(np.array([colors] * height, np.uint8), width, axis=1))


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize(
    ("channels", "small", "large"),
    [
        (21, (65, 65), (513, 400)),
        (21, (33, 50), (375, 500)),
        (2, (7, 5), (640, 480)),
        (5, (64, 64), (64, 300)),
        (3, (1, 1), (30, 20)),
        # More rows than are enlarged at a time.
        (4, (40, 60), (1500, 2000)),
    ],
)
def test_enlarging_agrees_with_torch(channels: int, small: tuple[int, int], large: tuple[int, int]) -> None:
    torch: Any = pytest.importorskip("torch")
    scores = smooth_scores(channels, *small)
    ours = enlarge_and_choose(scores, *large)
    enlarged = torch.nn.functional.interpolate(
        torch.from_numpy(scores)[None].double(), size=large, mode="bilinear", align_corners=False
    )[0]
    theirs = enlarged.argmax(0).numpy()
    assert ours.dtype == np.uint8 and ours.shape == large
    differs = ours != theirs
    assert differs.mean() <= 1e-4
    best, second = enlarged.topk(2, dim=0).values.numpy()
    assert not np.any(differs & (best - second > 1e-4))


def test_scores_of_the_image_s_size_are_compared_as_they_are() -> None:
    scores = smooth_scores(6, 90, 70)
    before = scores.copy()
    assert np.array_equal(enlarge_and_choose(scores, 90, 70), scores.argmax(0))
    assert np.array_equal(scores, before)


def test_reducing_averages() -> None:
    # One pixel of class 1 in four that otherwise favour class 0: the sum of the four decides.
    scores = np.zeros((2, 2, 2), np.float32)
    scores[1] = [[3.9, -1], [-1, -1]]
    assert enlarge_and_choose(scores, 1, 1).tolist() == [[1]]
    scores[1, 0, 0] = 2.9
    assert enlarge_and_choose(scores, 1, 1).tolist() == [[0]]


def test_ties_keep_the_lower_class() -> None:
    assert enlarge_and_choose(np.ones((4, 3, 3), np.float32), 9, 9).max() == 0
    level = np.array([0, 2, 2, 1], np.float32)[:, None, None] * np.ones((4, 5, 5), np.float32)
    assert np.unique(enlarge_and_choose(level, 50, 20)).tolist() == [1]


def test_sigmoid_needs_more_than_one_half() -> None:
    one = np.array([[[0.2, 0.5, np.nextafter(np.float32(0.5), np.float32(1)), 1.0]]], np.float32)
    assert enlarge_and_choose(one, 1, 4, sigmoid=True).tolist() == [[0, 0, 1, 1]]
    two = np.array([[[0.6, 0.6, 0.1, 0.9]], [[0.7, 0.55, 0.2, 0.9]]], np.float32)
    assert enlarge_and_choose(two, 1, 4, sigmoid=True).tolist() == [[2, 1, 0, 1]]


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**31))
def test_sigmoid_rule_for_any_scores(channels: int, height: int, width: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, 5, (channels, height, width)).astype(np.float32) / 4
    expected = np.where(scores.max(0) > 0.5, 1 + scores.argmax(0), 0)
    assert np.array_equal(enlarge_and_choose(scores, height, width, sigmoid=True), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (3, 5000), (5000, 3)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    scores = np.stack([np.zeros((9, 9), np.float32), np.ones((9, 9), np.float32)])
    class_map = enlarge_and_choose(scores, *size)
    assert class_map.shape == size and class_map.min() == 1


def test_a_64_megapixel_mask_stays_under_a_gigabyte() -> None:
    scores = smooth_scores(21, 65, 65)
    # A quarter of the pixels, a quarter of the bound.
    assert peak_growth_bytes(lambda: enlarge_and_choose(scores, 4000, 4000)) < 250_000_000


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("activation", ["logits", "sigmoid"])
def test_areas_count_every_pixel_most_first(tmp_path: Path, layout: Any, activation: Any) -> None:
    segmenter = Segmenter(toy_models.segmenter(tmp_path, layout=layout, activation=activation))
    photo = DecodedImage(stripes(BLACK, BLUE, BLUE, BLUE, GREEN), "image/png")
    # The scores that the network would give: channels in the order background, red, green, blue.
    pixels = np.asarray(photo.rgb).astype(np.float32).transpose(2, 0, 1) / 255
    scores = pixels if activation == "sigmoid" else np.concatenate([np.full((1, 8, 30), 0.5, np.float32), pixels])
    answer = segmenter.postprocess(
        scores if layout == "NCHW" else scores.transpose(1, 2, 0), photo, InferenceRequest(b"")
    )
    areas = [(a.class_index, a.class_name, a.color, a.pixels, a.share) for a in answer.areas]
    assert areas == [
        (3, "blue", (128, 128, 0), 3 * 48, 0.6),
        (0, "background", (0, 0, 0), 48, 0.2),
        (2, "green", (0, 128, 0), 48, 0.2),
    ]
    assert sum(a.pixels for a in answer.areas) == photo.width * photo.height
    assert all(type(a.pixels) is int and type(a.share) is float for a in answer.areas)
    assert dict(answer.renders) == {} and answer.scores == ()


@settings(deadline=None, max_examples=30)
@given(width=st.integers(1, 80), height=st.integers(1, 80), seed=st.integers(0, 2**31))
def test_areas_add_up_for_any_image(toy: Segmenter, width: int, height: int, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(0, 1, (4, 8, 8)).astype(np.float32)
    segmentation = toy.segmentation(scores, DecodedImage(toy_models.solid(RED, width, height), "image/png"))
    assert segmentation.class_map.shape == (height, width)
    assert sum(a.pixels for a in segmentation.classes) == width * height
    assert sum(a.share for a in segmentation.classes) == pytest.approx(1)
    assert [a.pixels for a in segmentation.classes] == sorted((a.pixels for a in segmentation.classes), reverse=True)
    assert {a.class_index for a in segmentation.classes} == {*np.unique(segmentation.class_map).tolist()}


def of_map(class_map: list[list[int]]) -> Segmentation:
    return Segmentation(np.array(class_map, np.uint8), (), np.array(voc_palette(4), np.uint8))


def test_index_mask_is_the_class_map() -> None:
    mask = index_mask(of_map([[0, 1], [3, 2]]))
    assert mask.mode == "L" and np.asarray(mask).tolist() == [[0, 1], [3, 2]]


def test_color_mask_is_the_palette() -> None:
    mask = color_mask(of_map([[0, 1], [3, 2]]))
    assert mask.mode == "P"
    assert np.asarray(mask).tolist() == [[0, 1], [3, 2]]
    colours = np.asarray(mask.convert("RGB")).tolist()
    assert colours == [[[0, 0, 0], [128, 0, 0]], [[128, 128, 0], [0, 128, 0]]]


def test_overlay_tints_all_but_the_background() -> None:
    rgb = Image.fromarray(np.array([[[200, 100, 50], [200, 100, 50]]], np.uint8))
    half = overlay(of_map([[0, 1]]), rgb)
    # Half of the image and half of class 1's (128, 0, 0).
    assert np.asarray(half).tolist() == [[[200, 100, 50], [164, 50, 25]]]
    assert np.asarray(overlay(of_map([[2, 1]]), rgb, opacity=1.0)).tolist() == [[[0, 128, 0], [128, 0, 0]]]
    assert np.asarray(rgb).tolist() == [[[200, 100, 50], [200, 100, 50]]]


def test_renders_are_the_images_that_were_asked_for(toy: Segmenter) -> None:
    photo = DecodedImage(stripes(RED, BLACK, BLUE), "image/png")
    pixels = np.asarray(photo.rgb).astype(np.float32).transpose(2, 0, 1) / 255
    scores = np.concatenate([np.full((1, 8, 18), 0.5, np.float32), pixels])
    answer = toy.postprocess(scores, photo, InferenceRequest(b"", renders=RENDERS))
    assert list(answer.renders) == ["mask", "color", "overlay"]
    segmentation = toy.segmentation(scores, photo)
    for name, data in answer.renders.items():
        image = opened(data)
        assert image.format == "PNG" and image.size == photo.rgb.size
        assert np.array_equal(np.asarray(image), np.asarray(render(name, segmentation, photo)))
    assert np.asarray(opened(answer.renders["mask"]))[0, ::6].tolist() == [1, 0, 3]
    assert [*toy.postprocess(scores, photo, InferenceRequest(b"", renders=("color",))).renders] == ["color"]
