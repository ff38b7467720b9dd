"""Samples as the survey of a dataset finds them, without files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from services.datasets.importer.class_map import Decision, decide
from services.datasets.importer.mask_values import MaskPixels, statistics_of
from services.datasets.importer.survey import SampleInfo

BINARY = {0: 60, 255: 40}


def sample(name: str, values: dict[int, int] | None = None, *, lossy: bool = False, **changes: Any) -> SampleInfo:
    """A sample of 64 x 64 pixels, an image of its own; ``values``: pixels by mask value, by default BINARY."""
    given = BINARY if values is None else values
    pixels = np.repeat(np.array(list(given), np.int32), list(given.values()))[None]
    plain = SampleInfo(
        name=name,
        pair=0,
        frame=0,
        width=64,
        height=64,
        sha256=f"image {name}",
        grey=False,
        blank=False,
        brightest=255,
        format="8-bit colour",
        turned=False,
        in_volume=False,
        group=name,
        mask_sha256=f"mask {name}",
        mask_is_image=False,
        mask=statistics_of(MaskPixels("values", pixels, lossy=lossy)),
    )
    return replace(plain, **changes)


def paletted(name: str, values: dict[int, int], colors: Sequence[tuple[int, int, int]]) -> SampleInfo:
    """A sample whose mask has a palette; ``values``: pixels by index."""
    indices = np.repeat(np.array(list(values), np.uint8), list(values.values()))[None]
    mask = MaskPixels("palette", indices, np.array(colors, np.uint8))
    return replace(sample(name), mask=statistics_of(mask))


def decided(samples: Sequence[SampleInfo], **options: Any) -> Decision:
    """What the values of the masks of ``samples`` mean."""
    given = {"by_color": False, "snapped": False, "background": None, "names": None} | options
    return decide([s.mask for s in samples], **given)
