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
"""Of the windows, so many are turned and zoomed: resampling softens a picture, and most are asked about unsoftened."""
_BLURRED_SHARE = 0.25
_BLUR_REACH = 4


def augment(images: Tensor, classes: Tensor, preset: Preset, seed: int) -> tuple[Tensor, Tensor]:
    """Varied ``images`` float32 [N, 3, H, W] in 0-1 and ``classes`` int64 [N, H, W]; all draws follow from ``seed``.

    Takes uint8 images and classes. Classes are moved with the images, nearest, and keep their values.
    """
    images = images.float() / 255
    draws = torch.Generator().manual_seed(seed)  # on the CPU: the same on every device
    if preset.mirrored or preset.turn or preset.zoom:
        images, classes = _move(images, classes, preset, draws)
    if preset.brightness or preset.contrast or preset.gamma:
        images = _tone(images, preset, draws)
    if preset.blur:
        images = _blur(images, preset.blur, draws)
    if preset.noise:
        noises = torch.Generator(images.device).manual_seed(seed)
        strength = _draw(draws, len(images), 0, preset.noise).to(images.device)
        grain = torch.randn(images.shape, generator=noises, device=images.device)
        images = images + grain * strength.view(-1, 1, 1, 1)
    return images, classes.long()


def _draw(draws: torch.Generator, count: int, low: float, high: float) -> Tensor:
    return torch.rand(count, generator=draws) * (high - low) + low


def _factor(draws: torch.Generator, count: int, most: float) -> Tensor:
    """Factors around 1, as often above as below."""
    return torch.exp(_draw(draws, count, -1, 1) * math.log1p(most))


def _move(images: Tensor, classes: Tensor, preset: Preset, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    count = len(images)
    quarters = torch.randint(4, (count,), generator=draws) if preset.mirrored else torch.zeros(count)
    mirror = torch.randint(2, (count,), generator=draws) * 2.0 - 1 if preset.mirrored else torch.ones(count)
    moved = torch.rand(count, generator=draws) < _MOVED_SHARE
    angle = torch.where(moved, _draw(draws, count, -preset.turn, preset.turn), 0.0)
    zoom = torch.where(moved, _factor(draws, count, preset.zoom), 1.0)
    radians = torch.deg2rad(angle + 90.0 * quarters)
    cos, sin = torch.cos(radians) * zoom, torch.sin(radians) * zoom
    zeros = torch.zeros(count)
    # Where each pixel comes from. A square window: quarter turns of it fit exactly.
    places = torch.stack([torch.stack([cos * mirror, -sin, zeros], 1), torch.stack([sin * mirror, cos, zeros], 1)], 1)
    grid = functional.affine_grid(places.to(images.device), list(images.shape), align_corners=False)
    images = functional.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)
    labels = functional.grid_sample(classes[:, None].float(), grid, "nearest", "reflection", align_corners=False)
    return images, labels[:, 0]


def _tone(images: Tensor, preset: Preset, draws: torch.Generator) -> Tensor:
    count = len(images)
    shape = (-1, 1, 1, 1)
    lift = _draw(draws, count, -preset.brightness, preset.brightness).to(images.device).view(shape)
    contrast = _factor(draws, count, preset.contrast).to(images.device).view(shape)
    gamma = _factor(draws, count, preset.gamma).to(images.device).view(shape)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean + lift).clamp(0, 1) ** gamma


def _blur(images: Tensor, most: float, draws: torch.Generator) -> Tensor:
    """A Gaussian of its own for each of some of the windows: rows, then columns, as grouped convolutions."""
    count, channels, height, width = images.shape
    sigma = _draw(draws, count, 0.3, most)
    blurred = torch.rand(count, generator=draws) < _BLURRED_SHARE
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
