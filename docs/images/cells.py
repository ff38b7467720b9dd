"""Draws ``cells.png``, the microscope image of the README: bright nuclei on a dark ground, with their true mask.

It is drawn, not photographed: blurred ellipses of uneven brightness, background light and the noise of a camera.
``python docs/images/cells.py`` writes it anew, bit for bit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

WIDTH, HEIGHT, NUCLEI, SEED = 520, 360, 46, 11


def draw() -> tuple[Image.Image, Image.Image]:
    """The image (grey, 8 bits) and its mask (255 where a nucleus is)."""
    random = np.random.default_rng(SEED)
    light: NDArray[np.float64] = np.zeros((HEIGHT, WIDTH))
    mask = Image.new("L", (WIDTH, HEIGHT))
    for _ in range(NUCLEI):
        x, y = random.uniform(0, WIDTH), random.uniform(0, HEIGHT)
        long, round_ = random.uniform(9, 16), random.uniform(0.65, 0.95)
        nucleus = _ellipse(x, y, long, long * round_, random.uniform(0, 180))
        inside = np.asarray(nucleus) > 127
        texture = np.asarray(
            Image.fromarray(random.uniform(0, 255, (HEIGHT // 4, WIDTH // 4)).astype(np.uint8)).resize(
                (WIDTH, HEIGHT), Image.Resampling.BICUBIC
            ),
            np.float64,
        )
        bright = random.uniform(60, 190) * (0.7 + 0.6 * texture / 255)
        light = np.maximum(light, np.where(inside, bright, 0))
        mask.paste(255, mask=nucleus.point(lambda value: 255 if value > 127 else 0))
    sharp = Image.fromarray(light.astype(np.uint8))
    blurred, haze = sharp.filter(ImageFilter.GaussianBlur(1.4)), sharp.filter(ImageFilter.GaussianBlur(14))
    expected = np.asarray(blurred) + 0.12 * np.asarray(haze) + 9
    seen = random.poisson(np.maximum(expected, 0) * 2) / 2
    return Image.fromarray(np.clip(seen, 0, 255).astype(np.uint8)), mask


def _ellipse(x: float, y: float, long: float, short: float, degrees: float) -> Image.Image:
    side = int(4 * long)
    small = Image.new("L", (side, side))
    ImageDraw.Draw(small).ellipse((side / 2 - long, side / 2 - short, side / 2 + long, side / 2 + short), fill=255)
    canvas = Image.new("L", (WIDTH, HEIGHT))
    canvas.paste(small.rotate(degrees, Image.Resampling.BILINEAR), (int(x - side / 2), int(y - side / 2)))
    return canvas


if __name__ == "__main__":
    draw()[0].save(Path(__file__).with_name("cells.png"))
