"""Segment Anything's image encoder, rearranged for ONNX Runtime: equal outputs in less time and memory."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from export.sam.decoder import ImageSide
from export.sam.reference_package import Block, EncoderAttention, Sam, get_rel_pos


class FusedAttention(torch.autograd.Function):
    """softmax(q k^T) v for ``heads`` heads, q, k and v [B, S, heads * width]; one operator in ONNX Runtime.

    Its ``MultiHeadAttention`` computes in tiles. All scores of 12 heads between 4096 tokens would take 805 MB.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        """[B, S, heads * width of v]."""
        q, k, v = (torch.unflatten(each, 2, (heads, -1)).transpose(1, 2) for each in (q, k, v))
        return (torch.softmax(q @ k.transpose(2, 3), dim=-1) @ v).transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(graph: Any, q: Any, k: Any, v: Any, heads: int) -> Any:
        """The node that the exporter writes for it."""
        output = graph.op("com.microsoft::MultiHeadAttention", q, k, v, num_heads_i=heads, scale_f=1.0)
        return output.setType(v.type().with_sizes([None, None, None]))


class RelativePositionAttention(nn.Module):
    """Attention with decomposed relative positions (arXiv:2112.01526), computed within the product of q and k.

    A score is ``q . k + q . R_h[row of k] + q . R_w[column of k]``. With ``q . R_h`` and ``q . R_w`` as further
    channels of q, and one-hot rows and columns as further channels of k, it is one product instead of two passes over
    all scores.
    """

    where: Tensor

    def __init__(self, attention: EncoderAttention, side: int) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj
        self.heads, self.scale, self.side = attention.num_heads, attention.scale, side
        rows = get_rel_pos(side, side, attention.rel_pos_h).detach()
        self.rows = nn.Parameter(rows.transpose(1, 2).contiguous())  # [row of q, channel, row of k]
        columns = get_rel_pos(side, side, attention.rel_pos_w).detach()
        self.columns = nn.Parameter(columns.transpose(1, 2).contiguous())
        eye = torch.eye(side)
        where = torch.cat([eye.repeat_interleave(side, dim=0), eye.repeat(side, 1)], dim=1)
        self.register_buffer("where", where.view(1, side * side, 1, 2 * side))

    def forward(self, qkv: Tensor) -> Tensor:
        """[B, side, side, C] for q, k and v side by side, [B, side, side, 3 C], before ``proj``."""
        batch, side, heads = qkv.shape[0], self.side, self.heads
        q, k, v = qkv.chunk(3, dim=3)
        q = q.reshape(batch, side, side, heads, -1)
        by_row = q.flatten(2, 3) @ self.rows  # [B, row, columns * heads, side]
        by_column = q.permute(0, 2, 1, 3, 4).flatten(2, 3) @ self.columns
        by_column = torch.unflatten(by_column, 2, (side, heads)).transpose(1, 2)
        q = torch.cat([q * self.scale, torch.unflatten(by_row, 2, (side, heads)), by_column], dim=4)
        k = k.reshape(batch, side * side, heads, -1)
        k = torch.cat([k, self.where.expand(k.shape[0], -1, heads, -1)], dim=3)
        mixed = FusedAttention.apply(q.flatten(3).flatten(1, 2), k.flatten(2), v.flatten(1, 2), heads)  # type: ignore[no-untyped-call]
        return cast(Tensor, mixed.reshape(batch, side, side, -1))


class EncoderBlock(nn.Module):
    """A transformer block on side x side tokens; with window attention only the attention computes on the padding."""

    def __init__(self, block: Block, side: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.side, self.window = side, block.window_size
        self.attention = RelativePositionAttention(block.attn, block.window_size or side)

    def forward(self, x: Tensor) -> Tensor:
        """[B, side, side, C] to [B, side, side, C]."""
        own = self.attention
        # The published block pads with zeros before qkv, so that padding has the value of qkv's bias.
        qkv = self.norm1(x) @ own.qkv.weight.T
        if self.window:
            qkv = self._windows(qkv)
        mixed = own(qkv + own.qkv.bias)
        if self.window:
            mixed = self._whole(mixed, x.shape[0])
        x = x + own.proj(mixed)
        return x + cast(Tensor, self.mlp(self.norm2(x)))

    def _windows(self, x: Tensor) -> Tensor:
        count, missing = -(-self.side // self.window), -self.side % self.window
        batch, channels = x.shape[0], x.shape[3]
        x = nn.functional.pad(x, (0, 0, 0, missing, 0, missing))
        x = x.reshape(batch, count, self.window, count, self.window, channels).transpose(2, 3)
        return x.reshape(batch * count * count, self.window, self.window, channels)

    def _whole(self, x: Tensor, batch: int) -> Tensor:
        count = -(-self.side // self.window)
        x = x.reshape(batch, count, count, self.window, self.window, x.shape[3]).transpose(2, 3)
        x = x.reshape(batch, count * self.window, count * self.window, x.shape[5])
        return x[:, : self.side, : self.side]


class Encoder(nn.Module):
    """Pixels to the image embedding and the image inputs of ``PromptDecoder``."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        encoder = sam.image_encoder
        side = sam.prompt_encoder.image_embedding_size[0]
        self.patch_embed, self.pos_embed, self.neck = encoder.patch_embed, encoder.pos_embed, encoder.neck
        self.blocks = nn.ModuleList(EncoderBlock(cast(Block, block), side) for block in encoder.blocks)
        self.no_mask = sam.prompt_encoder.no_mask_embed.weight
        self.image_side = ImageSide(sam)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """embedding [N, 256, 64, 64], tokens [N, 4096, 256] and the outputs of ``ImageSide``.

        ``pixels`` float32 [N, 3, 1024, 1024], normalised, padded with zeros at the right and bottom.
        """
        x = self.patch_embed(pixels) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        embedding = self.neck(x.permute(0, 3, 1, 2))
        tokens = embedding.flatten(2).transpose(1, 2) + self.no_mask
        return embedding, tokens, *self.image_side(tokens)
