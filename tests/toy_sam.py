"""A toy Segment Anything whose right answers are known: it finds what has the colour that a prompt points at.

No torch: the graphs are built node by node. ``logits_of`` and ``iou_of`` say the same in numpy; ``expected_masks`` goes
all the way from an image and a prompt to masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.artifact import DECODER, ENCODER, MASK_PROMPT, GraphInput, Manifest, Preprocess, Weights, write_manifest
from tests.toy_models import OPSET, value
from tests.toy_sam_graphs import (
    CELL,
    DARK,
    DARKNESS,
    GRID,
    IOU,
    LOW,
    MEAN,
    OUTSIDE,
    REACH,
    REFUSAL,
    REFUSED,
    SHIFT,
    SIDE_PX,
    STD,
    STEEPNESS,
    decoder,
    encoder,
    features,
    mask_prompt,
)

GROUND = (13, 13, 20)
COLOURS = ((204, 26, 26), (26, 179, 51), (38, 64, 217), (217, 191, 26))
"""Of the rectangles of ``shapes``: far enough from each other and from the ground for every mask."""

Floats = NDArray[np.float64]
Box = tuple[int, int, int, int]


def sam(folder: Path, *, channels: int = 8) -> Manifest:
    """An artifact with ``channels`` channels (4 at least): 0 to 2 are a cell's mean colour, 3 is what a mask adds."""
    folder.mkdir(parents=True, exist_ok=True)
    encoder(channels).save(
        folder / ENCODER,
        [value("pixels", ["images", 3, SIDE_PX, SIDE_PX])],
        [value("embedding", ["images", channels, GRID, GRID]), *features("images", channels)],
    )
    mask_prompt(channels).save(
        folder / MASK_PROMPT,
        [value("tokens", [1, GRID * GRID, channels]), value("mask_input", ["masks", 1, LOW, LOW])],
        features("masks", channels, "masked_"),
    )
    decoder().save(
        folder / DECODER,
        [
            *features("rows", channels),
            value("point_coords", ["prompts", "points", 2]),
            value("point_labels", ["prompts", "points"]),
            value("min_iou", []),
        ],
        [
            value("iou", ["prompts", len(IOU)]),
            value("kept", ["survivors"], "int64"),
            value("logits", ["survivors", len(IOU), LOW, LOW]),
        ],
    )
    return write_manifest(
        folder,
        Manifest(
            family="sam",
            task="masks",
            architecture="toy",
            input=GraphInput(name="pixels", height=SIDE_PX, width=SIDE_PX),
            preprocess=Preprocess(longer_side=SIDE_PX, interpolation="bilinear", mean=MEAN, std=STD),
            weights=Weights(kind="imported", detail="toy"),
            opset=OPSET,
        ),
    )


# ---- images ----


def boxes_of(width: int, height: int) -> list[Box]:
    """x0, y0, x1, y1 (exclusive) of the rectangles in ``shapes``: one in each quarter, none touches another."""
    columns, rows = [(0.08, 0.42), (0.55, 0.93)], [(0.10, 0.45), (0.58, 0.90)]
    return [
        (round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height))
        for y0, y1 in rows
        for x0, x1 in columns
    ]


def shapes(width: int, height: int, count: int = len(COLOURS)) -> Image.Image:
    """``count`` plain rectangles, COLOURS at ``boxes_of``, on dark ground."""
    image = Image.new("RGB", (width, height), GROUND)
    for colour, box in list(zip(COLOURS, boxes_of(width, height), strict=True))[:count]:
        image.paste(colour, box)
    return image


def middle(box: Sequence[float]) -> tuple[float, float]:
    return (box[0] + box[2]) // 2, (box[1] + box[3]) // 2


# ---- the right answers ----


@dataclass(frozen=True, slots=True)
class Tokens:
    """A prompt as the decoder takes it: coordinates [P, 2] in the 1024 frame, labels [P]."""

    coords: NDArray[np.float32]
    labels: NDArray[np.float32]


def image_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of the image in the encoder's frame."""
    scale = SIDE_PX / max(width, height)
    return int(width * scale + 0.5), int(height * scale + 0.5)


def cells_of(image: Image.Image) -> Floats:
    """float64 [64, 64, 3], 0-1: the mean colours that the encoder sees; the padding is of the colour MEAN."""
    width, height = image_size(*image.size)
    size = np.tile(np.array(MEAN), (SIDE_PX, SIDE_PX, 1))
    size[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)) / 255.0
    return np.asarray(size.reshape(GRID, CELL, GRID, CELL, 3).mean(axis=(1, 3)))


def tokens_of(
    size: tuple[int, int], points: Sequence[Sequence[float]] = (), box: Sequence[float] | None = None
) -> Tokens:
    """Of points (x, y, label) and a box in pixels of an image of ``size`` (width, height)."""
    width, height = image_size(*size)
    corners = [(box[0], box[1], 2), (box[2], box[3], 3)] if box is not None else []
    rows = np.array([*points, *corners], np.float64).reshape(-1, 3)
    coords = rows[:, :2] * np.array([width / size[0], height / size[1]])
    return Tokens(coords.astype(np.float32), rows[:, 2].astype(np.float32))


def _cell_at(place: NDArray[np.float32]) -> tuple[int, int]:
    column, row = np.clip(np.floor((place + np.float32(0.5)) / CELL), 0, GRID - 1).astype(int)
    return int(row), int(column)


def colour_of(cells: Floats, tokens: Tokens) -> Floats:
    """[3]: the mean under the foreground points, else what is at the centre of the box, else black."""
    places = [place for place, label in zip(tokens.coords, tokens.labels, strict=True) if label == 1]
    if not places and (tokens.labels == 2).any():
        places = [(tokens.coords[tokens.labels == 2][0] + tokens.coords[tokens.labels == 3][0]) / np.float32(2)]
    return np.mean([cells[_cell_at(place)] for place in places], axis=0) if places else np.zeros(3)


def iou_of(cells: Floats, tokens: Tokens) -> Floats:
    """float64 [4]: the predicted IoUs of a prompt's masks."""
    return np.array(IOU) - DARKNESS * max(0.0, DARK - float(colour_of(cells, tokens).max()))


def logits_of(cells: Floats, tokens: Tokens, mask_input: NDArray[np.floating] | None = None) -> Floats:
    """float64 [4, 256, 256]: the low-resolution logits of a prompt; ``mask_input`` [256, 256]."""
    distance = np.abs(cells - colour_of(cells, tokens)).max(axis=2)
    logits = STEEPNESS * (np.array(REACH)[:, None, None] - distance)
    for place, label in zip(tokens.coords, tokens.labels, strict=True):
        if label == 0:
            near = np.abs(cells - cells[_cell_at(place)]).max(axis=2)
            logits = logits - REFUSAL * np.maximum(0.0, REFUSED - near)
    if mask_input is not None:
        fold = LOW // GRID
        pooled = np.asarray(mask_input, np.float64).reshape(GRID, fold, GRID, fold).mean(axis=(1, 3))
        logits = logits + SHIFT * pooled
    if (tokens.labels == 2).any():
        (x0, y0), (x1, y1) = (tokens.coords[tokens.labels == label][0] + np.float32(0.5) for label in (2, 3))
        centre = np.arange(GRID) * CELL + CELL / 2
        inside = np.outer((centre >= y0) & (centre <= y1), (centre >= x0) & (centre <= x1))
        logits = np.where(inside, logits, OUTSIDE)
    return np.asarray(logits.repeat(LOW // GRID, axis=1).repeat(LOW // GRID, axis=2))


def upsampled(logits: NDArray[np.floating], size: tuple[int, int]) -> Floats:
    """[..., height, width] for an image of ``size`` (width, height): to 1024, the padding cut off, to the image."""
    width, height = image_size(*size)
    large = _bilinear(_bilinear(np.asarray(logits, np.float64), SIDE_PX, -2), SIDE_PX, -1)[..., :height, :width]
    return _bilinear(_bilinear(large, size[1], -2), size[0], -1)


def _bilinear(values: Floats, length: int, axis: int) -> Floats:
    """One axis resized as ``interpolate(mode="bilinear", align_corners=False)`` does."""
    have = values.shape[axis]
    place = np.clip((np.arange(length) + 0.5) * have / length - 0.5, 0, None)
    low = np.floor(place).astype(int)
    shape = [1] * values.ndim
    shape[axis] = length
    share = (place - low).reshape(shape)
    high = np.minimum(low + 1, have - 1)
    return np.asarray(values.take(low, axis) * (1 - share) + values.take(high, axis) * share)


@dataclass(frozen=True, slots=True)
class Expected:
    """One mask. ``logits``: at the image's size; the mask is where they are above 0."""

    logits: Floats
    predicted_iou: float

    @property
    def mask(self) -> NDArray[np.bool_]:
        return self.logits > 0


def expected_masks(
    image: Image.Image,
    points: Sequence[Sequence[float]] = (),
    box: Sequence[float] | None = None,
    *,
    mask_input: NDArray[np.floating] | None = None,
    multimask: bool = True,
) -> list[Expected]:
    """The masks of a prompt in the server's order: 1 to 3 with ``multimask``, else 0."""
    cells, tokens = cells_of(image), tokens_of(image.size, points, box)
    logits, iou = logits_of(cells, tokens, mask_input), iou_of(cells, tokens)
    return [Expected(upsampled(logits[t], image.size), float(iou[t])) for t in ((1, 2, 3) if multimask else (0,))]
