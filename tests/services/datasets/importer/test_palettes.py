"""Masks with palettes: the index is the label, whatever colour it has, but for masks in black and white."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.services.datasets.importer.uploads import Imported, dataset, imported, paletted, png

SIDE = 40
Color = tuple[int, int, int]
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


def grey(*levels: int) -> list[Color]:
    return [(level, level, level) for level in levels]


def labels(seed: int, classes: int = 4) -> NDArray[np.uint8]:
    """uint8 [SIDE, SIDE]: a block of each label but 0, on 0."""
    random = np.random.default_rng(seed)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for label in range(1, classes):
        top, left = int(random.integers(2, 8)), 10 * (label - 1) + 1
        mask[top : top + 6 + 3 * label, left : left + 8] = label
    return mask


def counted(masks: list[NDArray[np.uint8]], classes: int) -> list[int]:
    return np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=classes).tolist()


def pixels(result: Imported) -> list[int]:
    assert result.report["ok"], result.report["errors"]
    return [each["pixels"] for each in result.report["classes"]]


def paletted_dataset(folder: Path, mask: Callable[[int], bytes], **options: object) -> Imported:
    return imported(folder, dataset(6, mask), **options)


@pytest.mark.parametrize(
    "palette",
    [
        grey(0, 255, 128, 64),
        grey(3, 2, 1, 9),
        grey(*[0] * 256),
        grey(*[7] * 4),
        [BLACK, (255, 0, 0), (255, 0, 0), (0, 0, 255)],
        [WHITE, WHITE, BLACK, BLACK],
        [(255, 0, 0), BLACK, BLACK, (0, 0, 255)],
        [BLACK, (9, 9, 9), (200, 0, 0), (0, 0, 3)],
    ],
    ids=["order", "dark", "all black", "one grey", "two alike", "two blacks", "black twice", "mixed"],
)
def test_the_index_is_the_label(palette: list[Color], tmp_path: Path) -> None:
    masks = [labels(seed) for seed in range(6)]
    result = paletted_dataset(tmp_path, lambda i: paletted(masks[i], palette))
    assert result.report["class_map"] == "palette"
    assert pixels(result) == counted(masks, 4)


def test_a_mask_that_uses_only_black_and_white_of_a_palette_is_read_as_the_others_are(tmp_path: Path) -> None:
    masks = [labels(seed, 2 if seed < 3 else 4) for seed in range(6)]
    result = paletted_dataset(tmp_path, lambda i: paletted(masks[i], grey(0, 255, 128, 64)[: 2 if i == 0 else 4]))
    assert pixels(result) == counted(masks, 4)


@pytest.mark.parametrize("entries", [0, 1, 3])
def test_a_png_without_its_palette_or_with_a_short_one(entries: int, tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    masks = [labels(seed) for seed in range(6)]

    def short(i: int) -> bytes:
        rows = b"".join(b"\x00" + row.tobytes() for row in masks[i])
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 3, 0, 0, 0))
        palette = chunk(b"PLTE", bytes(3 * entries)) if entries else b""
        return b"\x89PNG\r\n\x1a\n" + header + palette + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")

    assert pixels(paletted_dataset(tmp_path, short)) == counted(masks, 4)


@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize("others", ["palettes", "grey levels", "noisy levels"])
def test_black_and_white_is_read_as_it_looks(inverted: bool, others: str, tmp_path: Path) -> None:
    """Also where the palette begins with white, and where the other masks have grey levels, or noise in them."""
    masks = [labels(seed, 2) for seed in range(6)]

    def mask(i: int) -> bytes:
        if i < 3 and others != "palettes":
            levels = masks[i] * np.uint8(255)
            if others == "noisy levels":
                levels[20, 20] = 254
                levels[0, 0] = 1
            return png(levels)
        return paletted(1 - masks[i], [WHITE, BLACK]) if inverted else paletted(masks[i], [BLACK, WHITE])

    result = paletted_dataset(tmp_path, mask)
    assert result.report["class_map"] == "binary_0_255"
    expected = counted(masks, 2)
    if others == "noisy levels":  # 254 is nearer to white
        added = sum(int(masks[i][20, 20] == 0) for i in range(3))
        expected = [expected[0] - added, expected[1] + added]
    assert pixels(result) == expected
    assert [note["code"] for note in result.report["notes"]] == []


def test_conventions_that_differ_are_still_an_error(tmp_path: Path) -> None:
    """Small numbers in some masks, palettes in black and white in others."""
    result = paletted_dataset(
        tmp_path, lambda i: png(labels(i, 2)) if i < 3 else paletted(labels(i, 2), [BLACK, WHITE])
    )
    assert result.codes["errors"] == ["mixed_conventions"]


def test_colours_beside_a_palette_that_would_merge_classes_are_an_error(tmp_path: Path) -> None:
    palette = [BLACK, (255, 0, 0), (255, 0, 0), (0, 0, 255)]
    colors = np.array(palette, np.uint8)
    result = paletted_dataset(tmp_path, lambda i: png(colors[labels(i)]) if i < 3 else paletted(labels(i), palette))
    assert result.codes["errors"] == ["mixed_masks"]
    assert "one colour for several indices" in result.finding("mixed_masks")["message"]
