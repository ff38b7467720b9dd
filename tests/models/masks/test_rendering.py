"""Images of many masks, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from models.masks import rendering
from models.masks.rendering import color_image, colours, overlay_image, paint
from models.masks.rle import encode

HEIGHT, WIDTH = 12, 17


def mask_of(x0: int, y0: int, x1: int, y1: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def test_later_masks_lie_over_earlier_ones() -> None:
    masks = [mask_of(1, 1, 10, 9), mask_of(4, 3, 6, 5), mask_of(9, 0, 17, 12)]
    expected = np.zeros((HEIGHT, WIDTH), np.uint32)
    for number, mask in enumerate(masks, 1):
        expected[mask] = number
    painted = paint([encode(mask) for mask in masks], HEIGHT, WIDTH)
    assert painted.dtype == np.uint16 and np.array_equal(painted, expected)


def test_random_masks() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        masks = [random.random((HEIGHT, WIDTH)) < random.uniform(0, 1) for _ in range(4)]
        expected = np.zeros((HEIGHT, WIDTH), np.uint32)
        for number, mask in enumerate(masks, 1):
            expected[mask] = number
        assert np.array_equal(paint([encode(mask) for mask in masks], HEIGHT, WIDTH), expected)


def test_empty_full_and_no_masks() -> None:
    empty, full = encode(mask_of(0, 0, 0, 0)), encode(mask_of(0, 0, WIDTH, HEIGHT))
    assert not paint([], HEIGHT, WIDTH).any() and paint([], HEIGHT, WIDTH).shape == (HEIGHT, WIDTH)
    assert not paint([empty], HEIGHT, WIDTH).any()
    assert (paint([empty, full, empty], HEIGHT, WIDTH) == 2).all()


def test_more_masks_than_a_byte_counts() -> None:
    one = [encode(mask_of(0, 0, 1, 1))] * 299
    painted = paint([*one, encode(mask_of(3, 4, 5, 6))], HEIGHT, WIDTH)
    assert painted[0, 0] == 299 and painted[4, 3] == 300
    image = np.asarray(color_image(painted, 300))
    assert image[4, 3].tolist() == colours(300)[300].tolist() != image[0, 0].tolist()


def test_bands_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    painted = paint([encode(random.random((HEIGHT, WIDTH)) < 0.3) for _ in range(3)], HEIGHT, WIDTH)
    photo = Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
    color = color_image(painted, 3)
    whole = overlay_image(painted, color, photo)
    monkeypatch.setattr(rendering, "_BAND_PIXELS", 3 * WIDTH)
    assert color_image(painted, 3).tobytes() == color.tobytes()
    assert overlay_image(painted, color, photo).tobytes() == whole.tobytes()


def test_every_mask_has_a_colour_of_its_own() -> None:
    table = colours(200)
    assert table.shape == (201, 3) and table.dtype == np.uint8 and table[0].tolist() == [0, 0, 0]
    assert len({tuple(row) for row in table.tolist()}) == 201
    assert table[1:].max(axis=1).min() >= 240  # none of them is dark
    assert np.array_equal(colours(7), table[:8])  # a colour does not depend on how many follow
    neighbours = np.abs(np.diff(table[1:].astype(int), axis=0)).max(axis=1)
    assert neighbours.min() > 60
    assert colours(0).tolist() == [[0, 0, 0]]


def test_the_colour_image() -> None:
    painted = paint([encode(mask_of(1, 1, 10, 9)), encode(mask_of(4, 3, 6, 5))], HEIGHT, WIDTH)
    image = color_image(painted, 2)
    assert (image.mode, image.size) == ("RGB", (WIDTH, HEIGHT))
    assert np.array_equal(np.asarray(image), colours(2)[painted])
    assert not np.asarray(image)[painted == 0].any()


def test_the_overlay() -> None:
    photo = Image.new("RGB", (WIDTH, HEIGHT), (10, 100, 200))
    painted = paint([encode(mask_of(3, 3, 12, 10))], HEIGHT, WIDTH)
    image = np.asarray(overlay_image(painted, color_image(painted, 1), photo)).astype(int)
    tint = (np.array([10, 100, 200]) + colours(1)[1]) / 2
    line = (tint * (255 - 190) + 255 * 190) / 255
    assert np.abs(image[4:10, 4:12] - tint).max() <= 1
    assert np.abs(image[3, 3:12] - line).max() <= 1 and np.abs(image[3:10, 3] - line).max() <= 1
    # Below and right of the mask the line lies on the first pixel outside.
    below = (np.array([10, 100, 200]) * 65 + 255 * 190) / 255
    assert np.abs(image[10, 3:12] - below).max() <= 1 and np.abs(image[3:10, 12] - below).max() <= 1
    outside = np.ones((HEIGHT, WIDTH), np.bool_)
    outside[3:11, 3:13] = False
    assert (image[outside] == (10, 100, 200)).all()
    assert np.asarray(photo)[5, 5].tolist() == [10, 100, 200]


def test_an_overlay_of_nothing_is_the_photo() -> None:
    random = np.random.default_rng(1)
    photo = Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    nothing = paint([], HEIGHT, WIDTH)
    assert overlay_image(nothing, color_image(nothing, 0), photo).tobytes() == photo.tobytes()
    everything = paint([encode(mask_of(0, 0, WIDTH, HEIGHT))], HEIGHT, WIDTH)
    clear = overlay_image(everything, color_image(everything, 1), photo, opacity=0.0)
    assert clear.tobytes() == photo.tobytes()
