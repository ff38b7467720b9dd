"""How training images are varied: a whole batch at once, on the device that computes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ekiben.training import Augmentation


@dataclass(frozen=True)
class Preset:
    """Ranges of what is drawn for each window; zeros leave the window as it is.

    ``turn`` in degrees either way; ``zoom``, ``contrast``, ``gamma``: a factor between 1 / (1 + x) and 1 + x;
    ``brightness`` and ``noise`` in shares of the full range; ``blur``: the largest sigma in pixels.
    """

    mirrored: bool = False
    turn: float = 0.0
    zoom: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0
    blur: float = 0.0


PRESETS: dict[Augmentation, Preset] = {
    "none": Preset(),
    "light": Preset(mirrored=True),
    "standard": Preset(mirrored=True, turn=15, zoom=0.2, brightness=0.1, contrast=0.2, gamma=0.2, noise=0.02),
    "strong": Preset(mirrored=True, turn=45, zoom=0.4, brightness=0.2, contrast=0.4, gamma=0.5, noise=0.05, blur=1.5),
}

_MOVED_SHARE = 0.5
"""Of the windows, so many are turned and zoomed: resampling softens an image, and most are asked about unsoftened."""
_BLURRED_SHARE = 0.25
_BLUR_REACH = 4


class Draws:
    """Numbers for every window of a step, of which this process takes those of its windows.

    On the CPU, so that every device and every number of processes varies a window in the same way.
    """

    def __init__(self, seed: int, count: int, part: tuple[int, int]) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._count, (self._rank, self._world) = count, part

    def between(self, low: float, high: float) -> Tensor:
        drawn = torch.rand(self._count * self._world, generator=self._generator)[self._rank :: self._world]
        return drawn * (high - low) + low

    def below(self, limit: int) -> Tensor:
        return self.between(0, limit).floor()

    def factor(self, most: float) -> Tensor:
        """Factors around 1, as often above as below."""
        return torch.exp(self.between(-1, 1) * math.log1p(most))


def augment(
    images: Tensor, classes: Tensor, preset: Preset, seed: int, part: tuple[int, int] = (0, 1)
) -> tuple[Tensor, Tensor]:
    """Varied ``images`` float32 [N, 3, H, W] in 0-1 and ``classes`` int64 [N, H, W]; all draws follow from ``seed``.

    Takes uint8 images and classes. Classes are moved with the images, nearest, and keep their values. ``part``: which
    process of how many this is; each has its windows of the step.
    """
    images = images.float() / 255
    draws = Draws(seed, len(images), part)
    if preset.mirrored or preset.turn or preset.zoom:
        images, classes = _move(images, classes, preset, draws)
    if preset.brightness or preset.contrast or preset.gamma:
        images = _tone(images, preset, draws)
    if preset.blur:
        images = _blur(images, preset.blur, draws)
    if preset.noise:
        noises = torch.Generator(images.device).manual_seed(seed + part[0])
        strength = draws.between(0, preset.noise).to(images.device)
        grain = torch.randn(images.shape, generator=noises, device=images.device)
        images = images + grain * strength.view(-1, 1, 1, 1)
    return images, classes.long()


def _move(images: Tensor, classes: Tensor, preset: Preset, draws: Draws) -> tuple[Tensor, Tensor]:
    count = len(images)
    quarters = draws.below(4) if preset.mirrored else torch.zeros(count)
    mirror = draws.below(2) * 2 - 1 if preset.mirrored else torch.ones(count)
    moved = draws.between(0, 1) < _MOVED_SHARE
    angle = torch.where(moved, draws.between(-preset.turn, preset.turn), 0.0)
    zoom = torch.where(moved, draws.factor(preset.zoom), 1.0)
    radians = torch.deg2rad(angle + 90.0 * quarters)
    cos, sin = torch.cos(radians) * zoom, torch.sin(radians) * zoom
    zeros = torch.zeros(count)
    # Where each pixel comes from. A square window: quarter turns of it fit exactly.
    places = torch.stack([torch.stack([cos * mirror, -sin, zeros], 1), torch.stack([sin * mirror, cos, zeros], 1)], 1)
    grid = functional.affine_grid(places.to(images.device), list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)
    labels = functional.grid_sample(classes[:, None].float(), grid, "nearest", "reflection", align_corners=False)
    return images, labels[:, 0]


def _tone(images: Tensor, preset: Preset, draws: Draws) -> Tensor:
    shape = (-1, 1, 1, 1)
    lift = draws.between(-preset.brightness, preset.brightness).to(images.device).view(shape)
    contrast = draws.factor(preset.contrast).to(images.device).view(shape)
    gamma = draws.factor(preset.gamma).to(images.device).view(shape)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean + lift).clamp(0, 1) ** gamma


def _blur(images: Tensor, most: float, draws: Draws) -> Tensor:
    """A Gaussian of its own for each of some of the windows: rows, then columns, as grouped convolutions."""
    count, channels, height, width = images.shape
    sigma = draws.between(0.3, most)
    blurred = draws.between(0, 1) < _BLURRED_SHARE
    at = torch.arange(-_BLUR_REACH, _BLUR_REACH + 1)
    kernel = torch.exp(-(at**2) / (2 * sigma[:, None] ** 2))
    kernel = torch.where(blurred[:, None], kernel, (at == 0).float())
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(images.device).repeat_interleave(channels, 0)
    flat = images.reshape(1, count * channels, height, width)
    for shape, padding in (
        ((-1, 1, 1, 2 * _BLUR_REACH + 1), (_BLUR_REACH, _BLUR_REACH, 0, 0)),
        ((-1, 1, 2 * _BLUR_REACH + 1, 1), (0, 0, _BLUR_REACH, _BLUR_REACH)),
    ):
        flat = functional.conv2d(
            functional.pad(flat, padding, mode="reflect"), kernel.view(shape), groups=count * channels
        )
    return flat.view(images.shape)
