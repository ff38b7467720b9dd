"""Prompts: points, boxes and mask inputs, parsed, checked, and as the tokens of the decoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import BadInput
from models.sam.graphs import SIDE, Floats
from models.sam.grids import to_input_coordinates

MAX_PROMPTS = 1000
"""Of one request."""
MAX_POINTS = 100
"""Points of one prompt. The decoder's memory grows with their number."""

MAX_POINTS_IN_ALL = 20_000
"""Points of all prompts of one request."""

BACKGROUND, FOREGROUND, BOX_START, BOX_END, PADDING, ABSENT = 0.0, 1.0, 2.0, 3.0, -1.0, -2.0
"""Labels of the decoder's points. PADDING is the reference's: it follows the points of a prompt without a box. ABSENT
is of Ekiben's export: it fills the rows of shorter prompts in a batch, and the graph ignores it."""

Point = tuple[float, float, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a person marks in an image to get its mask.

    ``points``: (x, y, label), label 1 foreground or 0 background. ``box``: x0, y0, x1, y1. Both are in pixels of the
    EXIF-turned image, the centre of the first pixel at (0, 0). ``mask_input``: logits float32 [256, 256].
    """

    points: tuple[Point, ...] = ()
    box: Box | None = None
    mask_input: Floats | None = None


def read_prompts(given: Any) -> tuple[list[Prompt], list[str | None]]:
    """Prompts from parsed JSON, without mask inputs, and for each the id of its mask input or None.

    BadInput names the wrong prompt, counted from 0.
    """
    if not isinstance(given, list):
        raise BadInput("prompts is a JSON list of objects with points, box or both, and perhaps mask_input")
    if len(given) > MAX_PROMPTS:
        raise BadInput(f"there are {len(given)} prompts; at most {MAX_PROMPTS} are taken at once")
    pairs = [_read_prompt(number, one) for number, one in enumerate(given)]
    if sum(len(prompt.points) for prompt, _ in pairs) > MAX_POINTS_IN_ALL:
        raise BadInput(f"the prompts have more than {MAX_POINTS_IN_ALL} points in all")
    return [prompt for prompt, _ in pairs], [ident for _, ident in pairs]


def _read_prompt(number: int, given: Any) -> tuple[Prompt, str | None]:
    if not isinstance(given, dict):
        raise BadInput(f"prompt {number} is no object with points, box or mask_input")
    if unknown := set(given) - {"points", "box", "mask_input"}:
        raise BadInput(f"prompt {number} has an unknown key {min(unknown)[:40]!r}; there are points, box, mask_input")
    points = given.get("points") if given.get("points") is not None else []
    if not isinstance(points, list) or len(points) > MAX_POINTS:
        raise BadInput(f"prompt {number}: points is a list of at most {MAX_POINTS} [x, y, label]")
    read = []
    for point in points:
        if not isinstance(point, list) or len(point) != 3 or not all(_finite(value) for value in point):
            raise BadInput(f"prompt {number}: a point is [x, y, label], three numbers")
        if point[2] not in (0, 1):
            raise BadInput(f"prompt {number}: the label of a point is 1 (foreground) or 0 (background)")
        read.append((float(point[0]), float(point[1]), int(point[2])))
    box = given.get("box")
    if box is not None and (not isinstance(box, list) or len(box) != 4 or not all(_finite(value) for value in box)):
        raise BadInput(f"prompt {number}: a box is [x0, y0, x1, y1], four numbers")
    ident = given.get("mask_input")
    if ident is not None and not (
        isinstance(ident, str) and len(ident) <= 64 and ident.isascii() and ident.isprintable()
    ):
        raise BadInput(f"prompt {number}: mask_input is the id of a mask of an earlier answer")
    if not read and box is None and ident is None:
        raise BadInput(f"prompt {number} is empty: it needs points, a box or mask_input")
    return Prompt(tuple(read), tuple(map(float, box)) if box is not None else None, None), ident  # type: ignore[arg-type]


def _finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def check_prompts(prompts: Sequence[Prompt], width: int, height: int) -> None:
    """BadInput for a point or box outside the image of ``width`` x ``height``, and for an empty box."""
    for number, prompt in enumerate(prompts):
        for x, y, _ in prompt.points:
            if not (0 <= x < width and 0 <= y < height):
                raise BadInput(f"prompt {number}: the point ({x:g}, {y:g}) is outside the image ({width} x {height})")
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box
            if not (x0 < x1 and y0 < y1):
                raise BadInput(f"prompt {number}: the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) is empty")
            if not (x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height):
                raise BadInput(
                    f"prompt {number}: the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) is outside the image "
                    f"({width} x {height})"
                )


def whole_image(width: int, height: int) -> Prompt:
    """The prompt of a request without prompts: the box of the whole image."""
    return Prompt(box=(0.0, 0.0, float(width), float(height)))


def point_tokens(
    prompts: Sequence[Prompt], original: tuple[int, int], resized: tuple[int, int]
) -> tuple[Floats, Floats]:
    """Coordinates float32 [B, P, 2] in pixels of the encoder's input, and labels float32 [B, P], of all prompts.

    ``original`` and ``resized``: height and width of the image, and of its part of the encoder's input. Points come
    first, then one padding point where there is no box, then the box's corners, as in the reference
    (``modeling/prompt_encoder.py``); a prompt with a mask input only has no tokens of its own.
    """
    rows: list[list[tuple[float, float, float]]] = []
    for prompt in prompts:
        row = [(x, y, float(label)) for x, y, label in prompt.points]
        if prompt.points and prompt.box is None:
            row.append((0.0, 0.0, PADDING))
        if prompt.box is not None:
            x0, y0, x1, y1 = prompt.box
            row += [(x0, y0, BOX_START), (x1, y1, BOX_END)]
        rows.append(row)
    longest = max(1, max(map(len, rows)))
    tokens = np.zeros((len(rows), longest, 3))
    tokens[:, :, 2] = ABSENT
    for place, row in zip(tokens, rows, strict=True):
        place[: len(row)] = np.array(row).reshape(-1, 3)
    coords: NDArray[np.float64] = to_input_coordinates(tokens[:, :, :2], original, resized)
    return coords.astype(np.float32), tokens[:, :, 2].astype(np.float32)


def mask_inputs(prompts: Sequence[Prompt]) -> tuple[list[int], Floats]:
    """The indexes of the M prompts with a mask input, and these inputs: float32 [M, 256, 256]."""
    index = [number for number, prompt in enumerate(prompts) if prompt.mask_input is not None]
    masks = [prompt.mask_input for prompt in prompts if prompt.mask_input is not None]
    return index, np.stack(masks) if masks else np.zeros((0, SIDE, SIDE), np.float32)
