"""Mask files of every kind become the classes they were drawn as; the reference is numpy on what was written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import BadImage, TooLarge
from models.artifact import voc_palette
from services.datasets.importer.class_map import Decision, colors_decide, decide
from services.datasets.importer.mask_checks import is_noisy_binary
from services.datasets.importer.mask_values import MaskPixels, MaskStatistics, label_mask, read_mask, statistics_of
from tests.services.datasets.importer import shapes
from tests.services.datasets.importer.uploads import blob, paletted, png
from tests.toy_models import encoded, noise

LABELS = np.array([[0, 1, 2], [2, 1, 0], [0, 0, 1], [1, 2, 2]], np.uint8)
COLORS = [(0, 0, 0), (255, 0, 0), (0, 200, 10)]
RGB = np.array(COLORS, np.uint8)[LABELS]


def classes_of(
    masks: Sequence[bytes | MaskPixels], background: list[int] | None = None, names: list[str] | None = None
) -> tuple[Decision, list[NDArray[np.uint8]]]:
    read = [mask if isinstance(mask, MaskPixels) else read_mask(mask) for mask in masks]
    info = [statistics_of(mask) for mask in read]
    decision = decide(info, by_color=colors_decide(info), snapped=False, background=background, names=names)
    applied = [decision.map.apply(mask) for mask in read]
    for seen, classes in zip(info, applied, strict=True):
        # What the first pass counts is what the second writes.
        expected = np.bincount(classes.ravel(), minlength=len(decision.map.names))
        np.testing.assert_array_equal(decision.map.pixels_of(seen), expected)
    return decision, applied


def rgba(color: tuple[int, int, int]) -> NDArray[np.uint8]:
    """``color`` drawn on transparency where LABELS is not 0."""
    drawn = np.zeros((*LABELS.shape, 4), np.uint8)
    drawn[..., :3] = color
    drawn[..., 3] = (LABELS > 0) * 255
    return drawn


@pytest.mark.parametrize(
    ("data", "kind", "expected"),
    [
        (png(LABELS), "labels", LABELS),
        (png((LABELS > 0) * np.uint8(255)), "binary_0_255", LABELS > 0),
        (png((LABELS > 0) * np.uint8(1)), "binary_0_1", LABELS > 0),
        (png(LABELS * np.uint8(100)), "labels", LABELS),
        (png(LABELS.astype(np.uint16) * 30000), "labels", LABELS),
        (encoded(Image.fromarray(LABELS.astype(np.int32) * 70000), "TIFF"), "labels", LABELS),
        (encoded(Image.fromarray(LABELS.astype(np.float32)), "TIFF"), "labels", LABELS),
        (encoded(Image.fromarray(LABELS > 0)), "binary_0_255", LABELS > 0),
        (paletted(LABELS, COLORS), "palette", LABELS),
        (paletted(LABELS, list(voc_palette(256))), "palette", LABELS),
        (paletted(LABELS, [(255, 255, 255), (0, 0, 0), (9, 9, 9)]), "labels", np.array([2, 0, 1])[LABELS]),
        (encoded(Image.fromarray(RGB), "BMP"), "colors", np.array([0, 2, 1])[LABELS]),
        (png(np.repeat(LABELS[..., None], 3, 2)), "labels", LABELS),
        (png(rgba((255, 0, 0))), "colors", LABELS > 0),
        (png(rgba((255, 255, 255))), "binary_0_255", LABELS > 0),
        (png(rgba((0, 0, 0))), "binary_0_255", LABELS > 0),
        (png(rgba((255, 255, 255))[..., [0, 3]]), "binary_0_255", LABELS > 0),
        (encoded(Image.fromarray(LABELS), "WEBP", lossless=True), "labels", LABELS),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mask_of_each_kind(data: bytes, kind: str, expected: NDArray[Any]) -> None:
    decision, (classes,) = classes_of([data])
    assert decision.map.kind == kind
    np.testing.assert_array_equal(classes, expected)


def test_voc_colors_keep_the_order_of_voc() -> None:
    """RGB masks in Pascal VOC's colours: classes in its order, its border is background."""
    voc = np.array(voc_palette(256), np.uint8)
    indices = np.array([[0, 15, 255], [1, 7, 0]])
    decision, (classes,) = classes_of([png(voc[indices])])
    assert (decision.voc, decision.voc_border) == (True, True)
    np.testing.assert_array_equal(classes, [[0, 3, 0], [1, 2, 0]])


def test_one_map_for_all_masks() -> None:
    """A mask that lacks a class does not move the others."""
    decision, (first, second) = classes_of([png(LABELS * np.uint8(9)), png((LABELS == 2) * np.uint8(18))])
    np.testing.assert_array_equal(first, LABELS)
    np.testing.assert_array_equal(second, (LABELS == 2) * 2)
    assert decision.gaps == [9, 18]


def test_palettes_that_number_colours_differently_are_read_by_colour() -> None:
    swapped = paletted(np.array([0, 2, 1], np.uint8)[LABELS], [COLORS[i] for i in (0, 2, 1)])
    _, (first, second) = classes_of([paletted(LABELS, COLORS), swapped])
    np.testing.assert_array_equal(first, second)


def test_background_values() -> None:
    with_border = np.where(LABELS == 2, 255, LABELS).astype(np.uint8)
    _, (classes,) = classes_of([png(with_border)], background=[255])
    np.testing.assert_array_equal(classes, LABELS == 1)
    # All but 0 is background: then 0 is what was drawn.
    decision, (classes,) = classes_of([png((LABELS > 0) * np.uint8(255))], background=[255])
    np.testing.assert_array_equal(classes, LABELS == 0)
    assert decision.inverted


def test_names_are_those_given_or_say_the_value() -> None:
    masks = [png(LABELS * np.uint8(9))]
    assert classes_of(masks)[0].map.names == ("background", "class_9", "class_18")
    assert classes_of(masks, names=["b", "x", "y"])[0].map.names == ("b", "x", "y")
    assert classes_of([encoded(Image.fromarray(RGB))])[0].map.names == ("background", "#00c80a", "#ff0000")
    assert classes_of([encoded(Image.fromarray(RGB))])[0].map.colors == ((0, 0, 0), (0, 200, 10), (255, 0, 0))


def test_labels_of_volumes_may_be_negative_and_large() -> None:
    values = np.array([[0, -5], [70000, 0]])
    _, (classes,) = classes_of([label_mask(values)])
    np.testing.assert_array_equal(classes, [[0, 1], [2, 0]])


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_jpeg_noise_goes_to_the_nearer_value(quality: int) -> None:
    drawn = [blob(i, 255, 64, 64) for i in range(4)]
    read = [read_mask(encoded(Image.fromarray(mask), "JPEG", quality=quality)) for mask in drawn]
    info = [statistics_of(mask) for mask in read]
    assert all(f.near_binary and f.lossy and f.distinct > 2 for f in info)
    decision = decide(info, by_color=False, snapped=True, background=None, names=None)
    assert decision.map.kind == "binary_0_255"
    for mask, seen, before in zip(read, info, drawn, strict=True):
        np.testing.assert_array_equal(decision.map.apply(mask), before > 0)
        assert decision.map.pixels_of(seen) == [int((before == 0).sum()), int((before > 0).sum())]
        assert seen.exact == int(np.isin(mask.data, (0, 255)).sum())


def fault(pixels: NDArray[Any], format: str = "PNG") -> str | None:
    return statistics_of(read_mask(encoded(Image.fromarray(pixels), format))).fault


def test_what_a_mask_with_too_many_values_looks_like() -> None:
    x = np.linspace(-5, 5, 128)
    hill = np.rint(255 * np.exp(-(x[:, None] ** 2 + x[None] ** 2) / 8)).astype(np.uint8)
    photo = np.asarray(noise(64, 64))
    assert fault(hill) == "soft"
    assert fault(np.broadcast_to(np.arange(256, dtype=np.uint8), (64, 256)).copy()) == "soft"
    assert fault(photo) == "photo"
    assert fault(photo[..., 0] // 3) == "photo"
    assert fault(photo, "JPEG") == "photo"
    assert fault(shapes.instances()) == "instances"
    assert fault(blob(1, 255, 64, 64)) is None
    assert fault(np.repeat(np.repeat(np.arange(32, dtype=np.uint8).reshape(4, 8), 8, 0), 8, 1)) is None


def info(values: Sequence[int], counts: Sequence[int]) -> MaskStatistics:
    return statistics_of(MaskPixels("values", np.repeat(np.array(values, np.uint8), counts)[None]))


@pytest.mark.parametrize(
    ("values", "counts", "kind"),
    [
        ([0, 1, 255], [800, 150, 50], "labels"),  # a class and a border
        ([0, 128, 255], [700, 100, 200], "labels"),  # two classes
        ([0, 254, 255], [700, 10, 290], "binary_0_255"),  # noise
        ([0, 200, 255], [700, 150, 150], "labels"),  # too many pixels for noise
        ([0, 1, 2, 253, 254, 255], [700, 3, 3, 3, 3, 288], "binary_0_255"),
    ],
)
def test_few_values_are_noise_only_where_they_are_rare_and_near(
    values: list[int], counts: list[int], kind: str
) -> None:
    assert is_noisy_binary([info(values, counts)]) == (kind == "binary_0_255")


def test_a_mask_is_turned_by_its_own_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(LABELS), "PNG", exif=exif)
    np.testing.assert_array_equal(read_mask(data).data, np.rot90(LABELS, -1))


def test_what_is_not_read() -> None:
    with pytest.raises(BadImage, match="is not a readable image"):
        read_mask(b"hello")
    with pytest.raises(BadImage, match="truncated"):
        read_mask(png(np.asarray(noise(40, 40)))[:900])
    with pytest.raises(TooLarge, match="9000 x 8000"):
        read_mask(shapes.huge())
