"""Preview sheets: validation images with the truth, the current prediction, and the difference."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from training.data import Pixels
from training.validation import ValidationScores

ROWS = 4
FOLDER = "previews"
PAUSE_S = 10.0  # between two sheets: drawing and storing one takes time from the training

_CELL = 256
_GAP = 6
_GREY = 48


def shown(indices: Sequence[int]) -> tuple[int, ...]:
    """Indices of the validation images on the sheets, at most ROWS, evenly spread; equal in every epoch."""
    places = np.linspace(0, len(indices) - 1, min(ROWS, len(indices))).round().astype(int)
    return tuple(indices[int(place)] for place in places)


class PreviewSheets:
    """Writes the sheets of one training into its folder. ``palette``: RGB, 0-255, by class."""

    def __init__(self, folder: Path, palette: Sequence[tuple[int, int, int]]) -> None:
        self._folder, self._palette = folder, palette
        self._written_at: float | None = None

    def due(self) -> bool:
        """Whether PAUSE_S have passed since the last sheet."""
        return self._written_at is None or time.monotonic() - self._written_at >= PAUSE_S

    def write(self, rows: Sequence[ValidationScores], number: int) -> str:
        """Write a sheet; return the file's name, relative to the folder. ``number``: of the epoch, names the file."""
        self._written_at = time.monotonic()
        name = f"{FOLDER}/{number:04d}.png"
        write_sheet(self._folder / name, rows, self._palette, 0.5)
        return name


def write_sheet(
    path: Path, rows: Sequence[ValidationScores], palette: Sequence[tuple[int, int, int]], threshold: float
) -> None:
    """Write a PNG with one row per image: image, truth, prediction, difference.

    The difference is drawn on the image in grey: hits are tinted with the colour of the class, missed pixels have that
    colour in full, false positives its complement. ``threshold``: of the probability of class 1.
    """
    colours = np.array(palette, np.uint8)
    sheet = Image.new("RGB", (4 * _CELL + 5 * _GAP, len(rows) * (_CELL + _GAP) + _GAP), (_GREY, _GREY, _GREY))
    for number, row in enumerate(rows):
        predicted = row.classes(threshold)
        cells = (row.rgb, colours[row.truth], colours[predicted], _difference(row.rgb, row.truth, predicted, colours))
        for column, cell in enumerate(cells):
            sheet.paste(_fitted(cell), (_GAP + column * (_CELL + _GAP), _GAP + number * (_CELL + _GAP)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG")


def _difference(rgb: Pixels, truth: Pixels, predicted: Pixels, colours: Pixels) -> Pixels:
    grey = np.repeat(rgb.mean(axis=2, keepdims=True), 3, axis=2) * 0.8
    hit = (truth == predicted) & (truth > 0)
    missed = (truth != predicted) & (truth > 0)
    wrong = (truth == 0) & (predicted > 0)
    grey[hit] = 0.6 * grey[hit] + 0.4 * colours[truth[hit]]
    grey[missed] = colours[truth[missed]]
    grey[wrong] = 255 - colours[predicted[wrong]]
    return grey.astype(np.uint8)


def _fitted(pixels: Pixels) -> Image.Image:
    """The image scaled to fit a grey square of _CELL pixels; enlarged by nearest neighbour, with sharp pixels."""
    image = Image.fromarray(pixels)
    scale = _CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR)
    square = Image.new("RGB", (_CELL, _CELL), (_GREY, _GREY, _GREY))
    square.paste(image, ((_CELL - image.width) // 2, (_CELL - image.height) // 2))
    return square
