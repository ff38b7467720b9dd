"""The losses, from MONAI: logits [N, C, H, W] and class indices [N, H, W] to a scalar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monai.losses.dice import DiceCELoss, DiceFocalLoss, DiceLoss
from monai.losses.focal_loss import FocalLoss
from monai.losses.tversky import TverskyLoss
from torch import Tensor
from torch.nn import functional

from ekiben.training import Loss

Criterion = Callable[[Tensor, Tensor], Tensor]

_FALSE_POSITIVES, _FALSE_NEGATIVES = 0.3, 0.7
"""Tversky's alpha and beta: a missed pixel costs more than a wrong one (Salehi et al. 2017, arXiv:1706.05721)."""


def criterion(name: Loss, channels: int) -> Criterion:
    """The loss called ``name``: logits, any float dtype, and int64 class indices to a float32 scalar.

    One channel: sigmoid, of class 1. More: softmax; overlap losses leave out the background.
    """
    binary = channels == 1
    overlap: dict[str, Any] = (
        {"sigmoid": True} if binary else {"softmax": True, "to_onehot_y": True, "include_background": False}
    )
    if name == "ce":
        return _cross_entropy_binary if binary else _cross_entropy
    if name == "focal":
        # For a single channel MONAI's focal loss is the sigmoid form, and use_softmax must be off.
        loss: Callable[[Tensor, Tensor], Tensor] = FocalLoss(to_onehot_y=not binary, use_softmax=not binary)
    else:
        loss = {
            "dice_ce": lambda: DiceCELoss(**overlap),
            "dice": lambda: DiceLoss(**overlap),
            "dice_focal": lambda: DiceFocalLoss(**overlap),
            "tversky": lambda: TverskyLoss(alpha=_FALSE_POSITIVES, beta=_FALSE_NEGATIVES, **overlap),
        }[name]()  # type: ignore[no-untyped-call]

    def float32_loss(logits: Tensor, classes: Tensor) -> Tensor:
        # Sums over pixels overflow 16-bit floats.
        logits = logits.float()
        truth = classes[:, None]
        return loss(logits, truth.to(logits.dtype) if binary else truth)

    return float32_loss


def _cross_entropy_binary(logits: Tensor, classes: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits[:, 0].float(), classes.float())


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    return functional.cross_entropy(logits.float(), classes.long())
