"""Classifiers of torchvision: from normalised pixels to logits."""

from __future__ import annotations

from torch import nn

HEADS = {"efficientnet_b0": "classifier.1.weight"}
"""Architecture -> the parameter whose first axis is the number of classes."""


def build(architecture: str, classes: int) -> nn.Module:
    """A newly initialised network in eval mode: pixels float32 [N, 3, H, W] to logits float32 [N, classes]."""
    from export.torchvision_ops import declare_missing

    declare_missing()
    from torchvision.models import efficientnet_b0

    networks = {"efficientnet_b0": efficientnet_b0}
    network: nn.Module = networks[architecture](weights=None, num_classes=classes)
    return network.eval()
