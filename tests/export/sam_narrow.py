"""A Segment Anything with the real decoder and an encoder of two thin blocks: one with windows, one without."""

from __future__ import annotations

from typing import Any

import torch


def build() -> Any:
    """The package's own builder, with other numbers."""
    from export.torchvision_ops import declare_missing

    declare_missing()
    from segment_anything.build_sam import _build_sam

    return _build_sam(
        encoder_embed_dim=64, encoder_depth=2, encoder_num_heads=2, encoder_global_attn_indexes=[1], checkpoint=None
    )


def stirred(network: Any, seed: int) -> Any:
    """The network with every number of its norms and biases moved: fresh ones are 1 and 0, and hide a mistake."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=source))
    return network
