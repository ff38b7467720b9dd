"""The networks that can be trained, from MONAI: float32 [N, 3, side, side] to logits [N, channels, side, side]."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets.attentionunet import AttentionUnet
from monai.networks.nets.flexible_unet import FlexibleUNet
from monai.networks.nets.unet import UNet
from torch import Tensor, nn
from torch.nn import functional

from ekiben.errors import Refusal
from ekiben.training import TrainingOptions
from models.artifact import TORCHSCRIPT, Manifest

LAST_RATE = 30.0
"""Factor of the learning rate of MONAI's last layer in a UNet (see ``parameter_groups``).

Measured on 118 nuclei images, 8 epochs at 0.003: validation Dice 0.647 with 1, 0.881 with 10, 0.893 with 30.
"""


class BadStart(Refusal):
    """The model in ``start_from`` has another architecture or other classes, or its weights cannot be read."""

    code = "bad_start"


def channels_of(classes: int) -> int:
    """Number of output channels: one for two classes (the logit of class 1), else one per class."""
    return 1 if classes == 2 else classes


def describe(options: TrainingOptions) -> str:
    """The architecture as the manifest names it, such as ``unet width 16 depth 5``."""
    if options.architecture == "resnet34_unet":
        return "resnet34_unet"
    return f"{options.architecture} width {options.width} depth {options.depth}"


def build(options: TrainingOptions, classes: int) -> nn.Module:
    """A newly initialised network; its weights are drawn from torch's global generator."""
    out = channels_of(classes)
    widths = [options.width * 2**level for level in range(options.depth)]
    strides = [2] * (options.depth - 1)
    if options.architecture == "unet":
        network: nn.Module = UNet(2, 3, out, widths, strides, num_res_units=2)
    elif options.architecture == "attention_unet":
        network = AttentionUnet(2, 3, out, widths, strides)
    else:
        # pretrained=True would download weights.
        network = FlexibleUNet(3, out, "resnet34", pretrained=False, spatial_dims=2)
        _pad_shortcuts(network)
    return network


class _PaddedShortcut(nn.Module):
    """The shortcut of a residual block with more channels out than in: every ``stride``-th pixel, and zeros."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        """float32 [N, C, H, W] to [N, channels, H / stride, W / stride]."""
        x = functional.avg_pool2d(x, 1, self.stride)
        return functional.pad(x, (0, 0, 0, 0, 0, self.channels - x.shape[1]))


def _pad_shortcuts(network: nn.Module) -> None:
    """Replace the shortcuts that MONAI makes of ``torch.zeros(batch, ...)``, for two reasons: both exports bake the
    batch size of their example into it, and it stops the gradient (``out.data``). They have no weights.
    """
    for module in network.modules():
        shortcut = getattr(module, "downsample", None)
        if isinstance(shortcut, partial):
            module.downsample = _PaddedShortcut(shortcut.keywords["planes"], shortcut.keywords["stride"])


def start_from(
    network: nn.Module, folder: Path, manifest: Manifest, options: TrainingOptions, labels: list[str]
) -> None:
    """Load the weights of the trained artifact in ``folder`` into ``network``.

    Raises BadStart with what does not fit.
    """
    wanted = describe(options)
    if manifest.family != "unet" or manifest.architecture != wanted:
        raise BadStart(
            f"start_from is a {manifest.architecture or manifest.family}, but a {wanted} is asked for: "
            "weights fit only the same architecture"
        )
    if list(manifest.labels) != labels:
        raise BadStart(
            f"start_from knows the classes {', '.join(manifest.labels)}, but the dataset has {', '.join(labels)}"
        )
    try:
        state = read_state(folder / TORCHSCRIPT)
        network.load_state_dict(state)
    except (OSError, RuntimeError, ValueError) as error:
        raise BadStart(f"the weights of start_from cannot be read: {str(error).splitlines()[0][:200]}") from None


def read_state(file: Path) -> dict[str, Tensor]:
    """The state_dict of the network in a TorchScript file, on the CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # loading's own deprecation; torch is pinned
        traced = torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
    return dict(traced.state_dict())


def parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, each with a ``rate_factor`` that multiplies its learning rate.

    MONAI's UNet normalises the output of its last layer, which has as few channels as there are output channels. The
    scale of the logits then depends on about twenty parameters, and at the common learning rate it takes thousands of
    steps until the network reaches confident probabilities. These parameters therefore get LAST_RATE.
    """
    last = set(list(network.model.children())[-1].parameters()) if isinstance(network, UNet) else set()
    rest = [parameter for parameter in network.parameters() if parameter not in last]
    groups = [{"params": rest, "rate_factor": 1.0}]
    if last:
        ordered = [parameter for parameter in network.parameters() if parameter in last]
        groups.append({"params": ordered, "rate_factor": LAST_RATE})
    return groups


def parameter_count(network: nn.Module) -> int:
    """Number of weights, trainable or not."""
    return sum(parameter.numel() for parameter in network.parameters())
