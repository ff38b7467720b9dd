"""Cut-outs pixel by pixel: colours, alpha, places, and that what was cut away is not there."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from models.images import encode_png
from models.masks.cut_style import CutStyle
from models.masks.cutouts import cut, place
from models.masks.rle import encode

HEIGHT, WIDTH = 60, 80


@pytest.fixture
def photo() -> Image.Image:
    """No pixel of it is black, and none has the colour of another."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return Image.fromarray(np.stack([columns + 100, rows + 100, 255 - rows], axis=-1).astype(np.uint8))


def mask_of(*boxes: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


def ring() -> NDArray[np.bool_]:
    mask = mask_of((20, 10, 50, 40))
    mask[20:30, 30:40] = False
    return mask


MASKS = {
    "a box": mask_of((20, 10, 50, 40)),
    "a ring": ring(),
    "two parts": mask_of((5, 5, 9, 9), (60, 40, 70, 55)),
    "one pixel": mask_of((33, 21, 34, 22)),
    "first corner": mask_of((0, 0, 6, 7)),
    "last corner": mask_of((70, 50, 80, 60)),
    "everything": mask_of((0, 0, 80, 60)),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("padding", [0, 1, 7, 10_000])
@pytest.mark.parametrize("frame", ["box", "full"])
def test_a_hard_cut(photo: Image.Image, mask: NDArray[np.bool_], padding: int, frame: Literal["box", "full"]) -> None:
    style = CutStyle(frame, padding)
    made = cut(photo, encode(mask), style)
    ys, xs = np.nonzero(mask)
    x0, y0 = max(0, xs.min() - padding), max(0, ys.min() - padding)
    x1, y1 = min(WIDTH, xs.max() + 1 + padding), min(HEIGHT, ys.max() + 1 + padding)
    if frame == "full":
        x0, y0, x1, y1 = 0, 0, WIDTH, HEIGHT
    assert place(encode(mask), style) == (x0, y0, x1, y1)
    assert made.mode == "RGBA" and made.size == (x1 - x0, y1 - y0)
    pixels, inside = np.asarray(made), mask[y0:y1, x0:x1]
    assert np.array_equal(pixels[..., 3], inside * 255)
    assert np.array_equal(pixels[inside][:, :3], np.asarray(photo)[y0:y1, x0:x1][inside])
    assert not pixels[~inside].any()  # what was cut away is not in the file


def test_the_file_holds_no_more_than_the_image(photo: Image.Image) -> None:
    """Read back from the PNG, as somebody would who strips its alpha."""
    data = encode_png(cut(photo, encode(ring()), CutStyle("full")))
    read = Image.open(io.BytesIO(data))
    assert (read.format, read.mode, read.size) == ("PNG", "RGBA", (WIDTH, HEIGHT))
    assert set(read.info) <= {"gamma"}
    colours = np.asarray(read)[..., :3]
    assert np.array_equal(colours, np.where(ring()[..., None], np.asarray(photo), 0))


def blurred(mask: NDArray[np.bool_], sigma: float) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(mask.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(sigma)))


@pytest.mark.parametrize("sigma", [0.5, 2.0, 6.0])
def test_a_soft_edge(photo: Image.Image, sigma: float) -> None:
    pixels = np.asarray(cut(photo, encode(ring()), CutStyle("full", 0, sigma)))
    alpha = pixels[..., 3]
    assert np.array_equal(alpha, blurred(ring(), sigma))
    assert len(np.unique(alpha)) > 3
    seen = alpha > 0
    assert np.array_equal(pixels[seen][:, :3], np.asarray(photo)[seen])
    assert not pixels[~seen].any()


def test_no_feather_has_two_levels_only(photo: Image.Image) -> None:
    for feather in (0, 0.0):
        alpha = np.asarray(cut(photo, encode(ring()), CutStyle("box", 3, feather)))[..., 3]
        assert set(np.unique(alpha)) == {0, 255}


@pytest.mark.parametrize("padding", [0, 2, 30])
def test_a_soft_edge_is_the_same_in_a_box(photo: Image.Image, padding: int) -> None:
    """The frame that is asked for decides what is shown of the edge, not what the edge is."""
    rle = encode(ring())
    style = CutStyle("box", padding, 3.0)
    x0, y0, x1, y1 = place(rle, style)
    whole = np.asarray(cut(photo, rle, CutStyle("full", 0, 3.0)))
    assert np.array_equal(np.asarray(cut(photo, rle, style)), whole[y0:y1, x0:x1])


def test_the_photo_is_left_alone(photo: Image.Image) -> None:
    before = photo.tobytes()
    cut(photo, encode(ring()), CutStyle("full", 0, 2.0))
    assert (photo.mode, photo.tobytes()) == ("RGB", before)
