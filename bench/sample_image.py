"""The image that all contenders classify: 500 x 375, drawn by arithmetic, as heavy as a photo."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT = 500, 375
QUALITY = 90

FloatArray = NDArray[np.float64]


def jpeg() -> bytes:
    """JPEG bytes (RGB, quality 90, 4:2:0, no EXIF), the same on every machine with the same Pillow.

    Photos of this size and quality have 40-90 KB; the grain is set so that this one does too, because the time to
    decode a JPEG goes with its bytes as much as with its pixels.
    """
    out = io.BytesIO()
    Image.fromarray(_pixels()).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _pixels() -> NDArray[np.uint8]:
    random = np.random.Generator(np.random.PCG64(4))
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH] / HEIGHT
    sky = np.stack([0.45 + 0.3 * y, 0.55 + 0.2 * y, 0.85 - 0.35 * y], axis=2)
    # Octaves of noise, each half as strong as the one before: clouds, leaves, grain.
    texture = np.zeros((HEIGHT, WIDTH))
    for octave, cells in enumerate((4, 9, 20, 45, 100, 200)):
        texture += _noise(random, cells) * 0.5**octave
    scene = sky + 0.28 * texture[:, :, None] * np.array([0.9, 1.0, 0.7])
    for centre_x, centre_y, radius, colour in (
        (0.45, 0.62, 0.27, (0.72, 0.38, 0.16)),
        (0.78, 0.50, 0.16, (0.20, 0.42, 0.18)),
        (1.05, 0.72, 0.20, (0.85, 0.80, 0.62)),
    ):
        distance = np.hypot(x - centre_x, (y - centre_y) * 1.2)
        inside = np.clip((radius - distance) * 60, 0, 1)[:, :, None]
        light = 1.1 - 0.8 * np.clip(distance / radius, 0, 1) ** 2 + 0.25 * texture
        scene = scene * (1 - inside) + inside * np.array(colour) * light[:, :, None]
    scene += random.normal(0, 0.025, scene.shape)
    pixels: NDArray[np.uint8] = (np.clip(scene, 0, 1) * 255).astype(np.uint8)
    return pixels


def _noise(random: np.random.Generator, cells: int) -> FloatArray:
    """[HEIGHT, WIDTH] in about -1..1: random values on a coarse grid, smoothly enlarged."""
    grid = random.uniform(-1, 1, (cells, cells * WIDTH // HEIGHT)).astype(np.float32)
    enlarged = Image.fromarray(grid).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    return np.asarray(enlarged, np.float64)
