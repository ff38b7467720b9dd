"""Augmentation of a whole batch of training patches, on the device that trains."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ekiben.training import Augmentation


@dataclass(frozen=True)
class Preset:
    """Ranges of the random parameters of a patch; with zeros the patch is unchanged.

    ``mirrored``: flips and quarter turns. ``turn``: largest angle in degrees, either direction. ``zoom``, ``contrast``,
    ``gamma``: a factor from 1 / (1 + x) to 1 + x. ``brightness``, ``noise`` (standard deviation): in shares of the full
    range 0-1. ``blur``: largest sigma in pixels.
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
"""Share of the patches that are turned and zoomed: resampling blurs, and images at serve time are not resampled."""
_BLURRED_SHARE = 0.25
_BLUR_RADIUS = 4  # pixels; more than 2.5 sigma at the largest sigma of the presets


class Draws:
    """Random numbers for every patch of a step; each method returns float32 [count], those of this process's patches.

    Drawn on the CPU for all processes, so that a patch is varied alike on any device and any number of processes.
    """

    def __init__(self, seed: int, count: int, part: tuple[int, int]) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._count, (self._rank, self._world) = count, part

    def uniform(self, low: float, high: float) -> Tensor:
        """Uniform numbers in [low, high)."""
        drawn = torch.rand(self._count * self._world, generator=self._generator)[self._rank :: self._world]
        return drawn * (high - low) + low

    def integers(self, limit: int) -> Tensor:
        """Whole numbers from 0 to ``limit`` - 1, as float32."""
        return self.uniform(0, limit).floor()

    def factor(self, most: float) -> Tensor:
        """Factors from 1 / (1 + most) to 1 + most, uniform in their logarithm."""
        return torch.exp(self.uniform(-1, 1) * math.log1p(most))


def augment(
    images: Tensor, classes: Tensor, preset: Preset, seed: int, part: tuple[int, int] = (0, 1)
) -> tuple[Tensor, Tensor]:
    """Varied images float32 [N, 3, H, W] in 0-1 and classes int64 [N, H, W]; all random numbers follow from ``seed``.

    ``images`` uint8 [N, 3, H, W], ``classes`` uint8 [N, H, W], H = W. Classes are resampled with the images, nearest
    neighbour. ``part``: (rank, number of processes); the patches are this process's share of the step.
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
        strength = draws.uniform(0, preset.noise).to(images.device)
        grain = torch.randn(images.shape, generator=noises, device=images.device)
        images = images + grain * strength.view(-1, 1, 1, 1)
    return images, classes.long()


def _move(images: Tensor, classes: Tensor, preset: Preset, draws: Draws) -> tuple[Tensor, Tensor]:
    count = len(images)
    quarters = draws.integers(4) if preset.mirrored else torch.zeros(count)
    mirror = draws.integers(2) * 2 - 1 if preset.mirrored else torch.ones(count)
    moved = draws.uniform(0, 1) < _MOVED_SHARE
    angle = torch.where(moved, draws.uniform(-preset.turn, preset.turn), 0.0)
    zoom = torch.where(moved, draws.factor(preset.zoom), 1.0)
    radians = torch.deg2rad(angle + 90.0 * quarters)
    cos, sin = torch.cos(radians) * zoom, torch.sin(radians) * zoom
    zeros = torch.zeros(count)
    # From output to input coordinates. Patches are square, so quarter turns keep the grid.
    places = torch.stack([torch.stack([cos * mirror, -sin, zeros], 1), torch.stack([sin * mirror, cos, zeros], 1)], 1)
    grid = functional.affine_grid(places.to(images.device), list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)
    labels = functional.grid_sample(classes[:, None].float(), grid, "nearest", "reflection", align_corners=False)
    return images, labels[:, 0]


def _tone(images: Tensor, preset: Preset, draws: Draws) -> Tensor:
    shape = (-1, 1, 1, 1)
    lift = draws.uniform(-preset.brightness, preset.brightness).to(images.device).view(shape)
    contrast = draws.factor(preset.contrast).to(images.device).view(shape)
    gamma = draws.factor(preset.gamma).to(images.device).view(shape)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean + lift).clamp(0, 1) ** gamma


def _blur(images: Tensor, most: float, draws: Draws) -> Tensor:
    """Blur a share of the patches, each with its own sigma: separable Gaussians as grouped convolutions."""
    count, channels, height, width = images.shape
    sigma = draws.uniform(0.3, most)
    blurred = draws.uniform(0, 1) < _BLURRED_SHARE
    at = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1)
    kernel = torch.exp(-(at**2) / (2 * sigma[:, None] ** 2))
    kernel = torch.where(blurred[:, None], kernel, (at == 0).float())
    kernel = (kernel / kernel.sum(1, keepdim=True)).to(images.device).repeat_interleave(channels, 0)
    flat = images.reshape(1, count * channels, height, width)
    for shape, padding in (
        ((-1, 1, 1, 2 * _BLUR_RADIUS + 1), (_BLUR_RADIUS, _BLUR_RADIUS, 0, 0)),
        ((-1, 1, 2 * _BLUR_RADIUS + 1, 1), (0, 0, _BLUR_RADIUS, _BLUR_RADIUS)),
    ):
        flat = functional.conv2d(
            functional.pad(flat, padding, mode="reflect"), kernel.view(shape), groups=count * channels
        )
    return flat.view(images.shape)
