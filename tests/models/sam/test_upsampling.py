"""Upsampling against torch: the same numbers as two bilinear steps, whole and in windows, at any size of image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models.masks.rle import encode_region
from models.sam.grids import longest_side_shape
from models.sam.upsampling import INPUT_SIDE, MaskRegion, Upsampler, stability_counts

torch: Any = pytest.importorskip("torch")

Floats = NDArray[np.float32]

SIZES = {
    "landscape": (534, 800),
    "portrait": (800, 534),
    "square": (300, 300),
    "strip": (200, 800),
    "tower": (800, 200),
    "tiny": (3, 7),
    "one pixel": (1, 1),
    "a line": (1, 64),
    "larger than the frame": (1500, 1100),
    "odd": (333, 1001),
    "the frame itself": (1024, 1024),
}
"""Height and width."""


def reference(logits: Floats, height: int, width: int) -> Floats:
    """``segment_anything/modeling/sam.py::postprocess_masks`` for one mask."""
    rows, columns = longest_side_shape(height, width)
    resize = torch.nn.functional.interpolate
    large = resize(torch.from_numpy(logits)[None, None], (INPUT_SIDE, INPUT_SIDE), mode="bilinear", align_corners=False)
    large = large[..., :rows, :columns]
    result: Floats = resize(large, (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
    return result


def counted(full: Floats, offset: float, threshold: float = 0.0) -> float | None:
    """``utils/amg.py::calculate_stability_score``; None for its NaN."""
    inner, outer = int((full > threshold + offset).sum()), int((full > threshold - offset).sum())
    return inner / outer if outer else None


def placed(region: MaskRegion, height: int, width: int) -> NDArray[np.bool_]:
    size = np.zeros((height, width), np.bool_)
    rows, columns = region.mask.shape
    size[region.top : region.top + rows, region.left : region.left + columns] = region.mask
    return size


def noise(seed: int) -> Floats:
    """Logits of +-10 that change from pixel to pixel."""
    return np.random.default_rng(seed).uniform(-10, 10, (256, 256)).astype(np.float32)


def blob(seed: int, size: float = 30.0) -> Floats:
    """Smooth logits of +-10, positive around one place."""
    random = np.random.default_rng(seed)
    x, y = random.uniform(20, 180, 2)
    rows, columns = np.mgrid[:256, :256]
    distance = np.hypot((rows - y) / random.uniform(0.5, 2), (columns - x) / random.uniform(0.5, 2))
    return np.asarray(10 * np.tanh((size - distance) / 8), np.float32)


def rectangle(top: int, left: int, bottom: int, right: int) -> Floats:
    logits = np.full((256, 256), -10, np.float32)
    logits[top:bottom, left:right] = 10
    return logits


def agree(logits: Floats, height: int, width: int, offset: float = 1.0, threshold: float = 0.0) -> MaskRegion:
    """The window says what thresholding all of it says."""
    upsampler = Upsampler(height, width)
    full = upsampler.full(logits)
    region = upsampler.region(logits, offset=offset, threshold=threshold)
    assert np.array_equal(placed(region, height, width), full > threshold)
    assert region.stability == counted(full, offset, threshold)
    return region


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_all_of_it_is_what_torch_gives(size: tuple[int, int]) -> None:
    for logits in (noise(1), blob(2)):
        full = Upsampler(*size).full(logits)
        assert full.shape == size and full.dtype == np.float32
        assert np.abs(full - reference(logits, *size)).max() < 1e-4  # steep noise; a whole mask is +-10


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("kind", ["noise", "blob", "all", "none"])
def test_a_window_is_the_thresholded_whole(size: tuple[int, int], kind: str) -> None:
    logits = {
        "noise": noise(3),
        "blob": blob(4),
        "all": np.full((256, 256), 7, np.float32),
        "none": np.full((256, 256), -7, np.float32),
    }[kind]
    region = agree(logits, *size)
    if kind == "all":
        assert region.mask.shape == size and region.mask.all() and region.stability == 1.0
    if kind == "none":
        assert not region.mask.any() and region.stability is None


@pytest.mark.parametrize("offset", [0.25, 1.0, 5.0])
@pytest.mark.parametrize("threshold", [0.0, 2.5, -3.0])
def test_any_offset_and_threshold(offset: float, threshold: float) -> None:
    for seed in range(3):
        agree(blob(seed), 97, 131, offset, threshold)
        agree(noise(seed), 97, 131, offset, threshold)


def test_against_the_reference_package() -> None:
    amg = _reference_amg()
    for seed in range(5):
        logits = blob(seed, 12)
        region = Upsampler(240, 360).region(logits)
        full = torch.from_numpy(reference(logits, 240, 360))
        assert region.stability == pytest.approx(
            float(amg.calculate_stability_score(full[None], 0.0, 1.0)[0]), abs=1e-4
        )
        differing = placed(region, 240, 360) != (full > 0).numpy()
        assert np.abs(full.numpy()[differing]).max(initial=0) < 1e-4  # float32 rounding at the very edge


def _reference_amg() -> Any:
    from export.torchvision_ops import declare_missing

    declare_missing()
    return pytest.importorskip("segment_anything.utils.amg")


BORDERS = {
    "top": (0, 100, 4, 140),
    "left": (60, 0, 120, 5),
    "corner": (0, 0, 3, 3),
    "right": (60, 250, 120, 256),
    "bottom of the frame": (252, 100, 256, 140),
    "last corner": (253, 253, 256, 256),
}


@pytest.mark.parametrize("border", BORDERS.values(), ids=BORDERS)
@pytest.mark.parametrize("size", [(256, 256), (1024, 1024), (800, 800), (1333, 1333), (120, 120)], ids=str)
def test_masks_at_the_borders(border: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    region = agree(rectangle(*border), *size)
    assert region.mask.any()


def test_the_last_row_and_column_of_an_image_that_is_not_square() -> None:
    for height, width in ((534, 800), (800, 534)):
        rows, columns = longest_side_shape(height, width)
        low = -(-rows // 4), -(-columns // 4)
        region = agree(rectangle(low[0] - 4, low[1] - 4, low[0], low[1]), height, width)
        assert region.top + region.mask.shape[0] == height and region.left + region.mask.shape[1] == width
        assert region.mask[-1, -1]


@pytest.mark.parametrize("place", [(0, 0), (0, 255), (255, 0), (255, 255), (100, 31), (254, 2)], ids=str)
def test_one_pixel(place: tuple[int, int]) -> None:
    row, column = place
    logits = rectangle(row, column, row + 1, column + 1)
    for size in ((1024, 1024), (640, 640), (256, 256), (2000, 2000)):
        region = agree(logits, *size)
        assert region.mask.size < 0.002 * size[0] * size[1] + 40  # it is only computed around the pixel


@pytest.mark.parametrize(
    ("size", "place"),
    [((534, 800), (250, 10)), ((800, 534), (10, 250)), ((200, 800), (255, 255)), ((3, 7), (10, 10)), ((1, 1), (5, 5))],
    ids=str,
)
def test_logits_that_no_pixel_of_the_image_is_made_of(size: tuple[int, int], place: tuple[int, int]) -> None:
    """Above the threshold only in the padding, or between the pixels of an image smaller than the logits."""
    region = agree(rectangle(*place, place[0] + 1, place[1] + 1), *size)
    assert region.stability is None
    rle = encode_region(region.mask, region.top, region.left, *size)
    assert (rle.height, rle.width, rle.area) == (*size, 0)


def test_nothing_above_the_lower_threshold_has_no_stability() -> None:
    upsampler = Upsampler(120, 90)
    assert upsampler.region(np.full((256, 256), -1, np.float32)).stability is None  # > is strict: 0 / 0
    barely = upsampler.region(np.full((256, 256), -0.5, np.float32))
    assert barely.stability == 0.0 and not barely.mask.any()
    zero = upsampler.region(np.zeros((256, 256), np.float32))
    assert zero.stability == 0.0 and not zero.mask.any()


def test_large_images_are_made_in_bands_that_agree() -> None:
    height, width = 1900, 1300  # 4.7 bands
    for logits in (noise(5), blob(6, 60)):
        region = agree(logits, height, width)
        assert region.mask.any()
    full = Upsampler(height, width).full(blob(6, 60))
    assert np.abs(full - reference(blob(6, 60), height, width)).max() < 1e-4


def test_an_image_wider_than_a_band_is_high() -> None:
    agree(noise(7), 40, 2560)


def test_the_logits_are_left_alone() -> None:
    logits = noise(8)
    logits.flags.writeable = False
    before = logits.copy()
    upsampler = Upsampler(50, 70)
    first = upsampler.region(logits)
    upsampler.region(blob(9))
    again = upsampler.region(logits)
    assert np.array_equal(first.mask, again.mask) and np.array_equal(logits, before)


def test_rows_of_a_larger_array_do_as_well() -> None:
    many = np.stack([noise(10), blob(11)], axis=-1)
    assert np.array_equal(Upsampler(60, 80).full(many[..., 1]), Upsampler(60, 80).full(blob(11)))


def test_random_sizes_and_rectangles() -> None:
    random = np.random.default_rng(12)
    for _ in range(120):
        height, width = (int(n) for n in random.integers(1, 400, 2))
        top, left = (int(n) for n in random.integers(0, 250, 2))
        rows, columns = (int(n) for n in random.integers(1, 7, 2))
        upsampler = Upsampler(height, width)
        logits = rectangle(top, left, top + rows, left + columns)
        full = upsampler.full(logits)
        if not (full > -1).any():
            continue  # see test_logits_that_no_pixel_of_the_image_is_made_of
        region = upsampler.region(logits)
        assert np.array_equal(placed(region, height, width), full > 0), (height, width, top, left)
        assert region.stability == counted(full, 1.0)


def test_the_golden_stability(shared_data: Path) -> None:
    golden = json.loads((shared_data / "sam_golden" / "sam_amg_golden.json").read_text())
    inner, outer = stability_counts(np.array(golden["stability_logits"], np.float32))
    assert inner / outer == pytest.approx(golden["stability"][0], abs=1e-7)
    assert stability_counts(np.full((4, 4), -5, np.float32)) == (0, 0)
    assert np.isnan(golden["stability_all_neg"][0])  # 0 / 0, which a Window says as None
    assert Upsampler(64, 64).region(np.full((256, 256), -5, np.float32)).stability is None
