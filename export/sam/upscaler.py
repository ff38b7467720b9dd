"""The last part of Segment Anything's decoder: tokens to low-resolution logits."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from export.sam.reference_package import MLP, MaskDecoder


class Upscaler(nn.Module):
    """Mask tokens and image tokens to low-resolution logits. Pixels stay in the token axis until the last reshape.

    ``side``: of the image embedding, 64.
    """

    def __init__(self, decoder: MaskDecoder, side: int) -> None:
        super().__init__()
        self.side = side
        first, norm, self.activation, second, _ = decoder.output_upscaling
        self.first, self.second = _transposed(first), _transposed(second)
        self.norm = nn.LayerNorm(norm.weight.shape[0], eps=norm.eps)
        self.norm.weight, self.norm.bias = norm.weight, norm.bias
        self.hyper = cast("list[MLP]", decoder.output_hypernetworks_mlps)

    def forward(self, mask_tokens: Tensor, image: Tensor) -> Tensor:
        """Logits [K, 4, 256, 256] for mask tokens [K, 4, 256] and image tokens [K, 4096, 256]."""
        weights = torch.stack([mlp(mask_tokens[:, index]) for index, mlp in enumerate(self.hyper)], dim=2)
        masks = (self.features(image) @ weights).reshape(image.shape[0], self.side, self.side, 2, 2, 2, 2, 4)
        return masks.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(image.shape[0], 4, self.side * 4, self.side * 4)

    def features(self, image: Tensor) -> Tensor:
        """Upscaled image features [K, 65536, 32] for image tokens [K, 4096, 256].

        Pixels are ordered by token (64 x 64), then 2 x 2 within it, then 2 x 2 within those.
        """
        x = self.activation(self.second(self.doubled(image)))
        return cast(Tensor, x.reshape(image.shape[0], self.side**2 * 16, self.second.out_features // 4))

    def doubled(self, image: Tensor) -> Tensor:
        """Image features after the first of two upscalings: [K * 16384, 64] for image tokens [K, 4096, 256]."""
        pixels = image.shape[0] * self.side**2
        x = self.first(image.reshape(pixels, image.shape[2]))
        return cast(Tensor, self.activation(self.norm(x.reshape(pixels * 4, self.second.in_features))))


def _transposed(convolution: nn.ConvTranspose2d) -> nn.Linear:
    """A transposed convolution of kernel 2 and stride 2 as a linear layer: [C] to [2 * 2 * out], rows first."""
    inputs, outputs = convolution.weight.shape[:2]
    layer = nn.Linear(inputs, 4 * outputs)
    layer.weight = nn.Parameter(convolution.weight.detach().permute(2, 3, 1, 0).reshape(4 * outputs, inputs))
    layer.bias = nn.Parameter(cast(Tensor, convolution.bias).detach().repeat(4))
    return layer
