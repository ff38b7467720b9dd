"""Segment Anything's prompt encoder and mask decoder, rearranged so that a prompt costs a third of the published order.

The outputs are those of ``segment_anything.modeling`` (Kirillov et al., arXiv:2304.02643) up to rounding. A decoder
layer attends between few prompt tokens (T = 5 + points) and 4096 image tokens, so most of the time is spent on
projections of image tokens. Three changes avoid them:

- In block 0 the projections of image tokens do not depend on the prompt: ``ImageSide`` computes them once per image.
- In block 1 and the last attention the projections are applied to the few prompt tokens instead:
  ``q . (W x + b) = (W^T q) . x + q . b``, and ``sum_i a_i (W x_i + b) = W (sum_i a_i x_i) + b``.
- The predicted IoUs depend on the prompt tokens alone, so masks are upscaled only for prompts above a threshold.

"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from export.sam.reference_package import Attention, PromptEncoder, Sam, TwoWayAttentionBlock
from export.sam.upscaler import Upscaler

ABSENT = -2.0
"""Label of a point that is masked out: it pads prompts of different lengths to one batch."""

_MASKED = -1e9  # added to a score: its softmax is exactly 0


def dense_positions(prompts: PromptEncoder) -> Tensor:
    """Positional encoding of the image tokens, [4096, 256]."""
    return cast(Tensor, prompts.get_dense_pe()[0].flatten(1).T.contiguous().detach())


class ImageSide(nn.Module):
    """Projections of the image tokens for block 0, independent of the prompt; an input of ``PromptDecoder``."""

    positions: Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        block = cast(TwoWayAttentionBlock, sam.mask_decoder.transformer.layers[0])
        self.to_image = block.cross_attn_token_to_image
        self.to_tokens = block.cross_attn_image_to_token
        self.register_buffer("positions", dense_positions(sam.prompt_encoder))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """keys [N, 8, 16, 4096], values [N, 8, 4096, 16] and queries [N, 4096, 128] for tokens [N, 4096, 256]."""
        placed = tokens + self.positions
        heads = self.to_image.num_heads
        keys = torch.unflatten(self.to_image.k_proj(placed), 2, (heads, -1)).permute(0, 2, 3, 1)
        values = torch.unflatten(self.to_image.v_proj(tokens), 2, (heads, -1)).transpose(1, 2)
        return keys, values, self.to_tokens.q_proj(placed)


class MaskPrompt(nn.Module):
    """Low-resolution logits of an earlier mask as a prompt: image tokens and their projections, with the mask added."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.downscaling = sam.prompt_encoder.mask_downscaling
        self.no_mask = sam.prompt_encoder.no_mask_embed.weight
        self.image_side = ImageSide(sam)

    def forward(self, tokens: Tensor, mask_input: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens [M, 4096, 256] and the outputs of ``ImageSide`` for tokens [1, 4096, 256], logits [M, 1, 256, 256]."""
        masks = self.downscaling(mask_input).flatten(2).transpose(1, 2)
        # ``tokens`` include the embedding of "no mask", which the mask replaces.
        masked = tokens + (masks - self.no_mask)
        return masked, *self.image_side(masked)


class PromptTokens(nn.Module):
    """Tokens of points and box corners, after the decoder's five output tokens (IoU, four masks)."""

    labels: Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        prompts, decoder = sam.prompt_encoder, sam.mask_decoder
        self.side = sam.image_encoder.img_size
        self.positions = prompts.pe_layer
        self.output = nn.Parameter(torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).detach())
        kinds = [prompts.not_a_point_embed.weight, *(each.weight for each in prompts.point_embeddings)]
        self.kinds = nn.Parameter(torch.cat(kinds).detach())
        self.register_buffer("labels", torch.arange(-1.0, len(kinds) - 1.0))

    def forward(self, coords: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B, 5 + P, 256] and their score offsets [B, 5 + P]: 0, or a large negative number for absent points.

        ``coords`` [B, P, 2]: x, y in pixels of the 1024 x 1024 frame. ``labels`` [B, P]: 0 background, 1 foreground, 2
        and 3 corners of a box, -1 padding, ABSENT.
        """
        labels = labels.unsqueeze(2)
        placed = self.positions._pe_encoding((coords + 0.5) / self.side) * torch.ge(labels, 0).float()
        points = placed + torch.eq(labels, self.labels).float() @ self.kinds
        output = self.output.unsqueeze(0).expand(coords.shape[0], -1, -1)
        absent = torch.eq(labels.squeeze(2), ABSENT).float() * _MASKED
        return torch.cat([output, points], dim=1), torch.cat([output[:, :, 0] * 0.0, absent], dim=1)


class SelfAttention(nn.Module):
    """Self-attention among the tokens of each prompt; absent ones are masked out."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, queries: Tensor, values: Tensor, added: Tensor) -> Tensor:
        """[B, T, 256] for queries (also the keys) and values [B, T, 256]; ``added`` [B, T]: score offsets of keys."""
        own = self.attention
        q, k, v = (
            torch.unflatten(project(x), 2, (own.num_heads, -1)).transpose(1, 2)
            for project, x in ((own.q_proj, queries), (own.k_proj, queries), (own.v_proj, values))
        )
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(2, 3) + added[:, None, None, :]
        mixed = torch.softmax(scores, dim=-1) @ v
        return cast(Tensor, own.out_proj(mixed.transpose(1, 2).flatten(2)))


class CrossAttention(nn.Module):
    """Attention between T prompt tokens and 4096 image tokens, with all projections applied to the prompt tokens."""

    eye: Tensor

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.heads = attention.num_heads
        self.width = attention.internal_dim // attention.num_heads
        self.scale = 1.0 / math.sqrt(self.width)
        self.register_buffer("eye", torch.eye(self.heads).view(1, self.heads, 1, self.heads, 1))

    def spread(self, projected: Tensor) -> Tensor:
        """[B, T, heads * width] as a block-diagonal matrix [B, heads * width, heads * T], one block per head."""
        parts = torch.unflatten(projected, 2, (self.heads, self.width)).permute(0, 2, 3, 1).unsqueeze(3)
        return (parts * self.eye).flatten(3).flatten(1, 2)


class TokensToImage(CrossAttention):
    """Cross-attention with prompt tokens as queries."""

    def cached(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[B, T, 256] for queries [B, T, 256]; projected keys [1 or B, 8, 16, 4096], values [1 or B, 8, 4096, 16]."""
        q = torch.unflatten(self.attention.q_proj(queries) * self.scale, 2, (self.heads, -1)).transpose(1, 2)
        mixed = torch.softmax(q @ keys, dim=-1) @ values
        return cast(Tensor, self.attention.out_proj(mixed.transpose(1, 2).flatten(2)))

    def forward(self, queries: Tensor, placed: Tensor, image: Tensor) -> Tensor:
        """[B, T, 256] for queries [B, T, 256] and image tokens [B, 4096, 256]; ``placed``: with positional encoding."""
        own = self.attention
        projected = own.k_proj.weight.T @ self.spread(own.q_proj(queries) * self.scale)  # [B, 256, heads * T]
        scores = (placed @ projected).transpose(1, 2)  # the key's bias would shift all scores of a softmax equally
        seen = torch.softmax(scores, dim=-1) @ image  # [B, heads * T, 256]
        by_head = torch.unflatten(own.v_proj.weight.T, 1, (self.heads, -1)).transpose(0, 1)  # [heads, 256, width]
        mixed = (torch.unflatten(seen, 1, (self.heads, -1)) @ by_head).transpose(1, 2).flatten(2) + own.v_proj.bias
        return cast(Tensor, own.out_proj(mixed))


class ImageToTokens(CrossAttention):
    """Cross-attention with image tokens as queries."""

    def cached(self, image_queries: Tensor, keys: Tensor, values: Tensor, added: Tensor) -> Tensor:
        """[B, 4096, 256] for projected queries [1 or B, 4096, 128], keys and values [B, T, 256], offsets [B, T]."""
        projected = self.spread(self.attention.k_proj(keys) * self.scale)
        return self._mix(image_queries @ projected + self._added(added), values)

    def forward(self, placed: Tensor, keys: Tensor, values: Tensor, added: Tensor) -> Tensor:
        """[B, 4096, 256] for image tokens with positions [B, 4096, 256], keys, values [B, T, 256], offsets [B, T]."""
        own = self.attention
        projected = self.spread(own.k_proj(keys) * self.scale)
        bias = own.q_proj.bias @ projected
        return self._mix(placed @ (own.q_proj.weight.T @ projected) + (bias.unsqueeze(1) + self._added(added)), values)

    def _added(self, added: Tensor) -> Tensor:
        return added.unsqueeze(1).repeat(1, 1, self.heads)

    def _mix(self, scores: Tensor, values: Tensor) -> Tensor:
        shares = torch.softmax(torch.unflatten(scores, 2, (self.heads, -1)), dim=-1).flatten(2)
        own = self.attention
        # The shares of a head sum to 1, so an eighth of the bias in the values of each head adds the bias, without
        # another pass over all image tokens.
        values_out = self.spread(own.v_proj(values)).transpose(1, 2) @ own.out_proj.weight.T
        return cast(Tensor, shares @ (values_out + own.out_proj.bias / self.heads))


class PromptDecoder(nn.Module):
    """Prompts on one image, or on an image each, to predicted IoUs, and logits of the prompts above a threshold."""

    positions: Tensor

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        decoder = sam.mask_decoder
        self.prompt_tokens = PromptTokens(sam)
        self.blocks = cast("list[TwoWayAttentionBlock]", decoder.transformer.layers)
        self.self_attention = nn.ModuleList(SelfAttention(block.self_attn) for block in self.blocks)
        self.first_to_image, self.second_to_image = (
            TokensToImage(block.cross_attn_token_to_image) for block in self.blocks
        )
        self.first_to_tokens, self.second_to_tokens = (
            ImageToTokens(block.cross_attn_image_to_token) for block in self.blocks
        )
        self.last = TokensToImage(decoder.transformer.final_attn_token_to_image)
        self.last_norm = decoder.transformer.norm_final_attn
        self.iou_head = decoder.iou_prediction_head
        self.upscaler = Upscaler(decoder, sam.prompt_encoder.image_embedding_size[0])
        self.register_buffer("positions", dense_positions(sam.prompt_encoder))

    def forward(
        self,
        tokens: Tensor,
        keys: Tensor,
        values: Tensor,
        queries: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        min_iou: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """iou float32 [B, 4], kept int64 [K] and logits float32 [K, 4, 256, 256].

        The first four inputs are the outputs of ``Encoder`` or ``MaskPrompt``, of one image or one per prompt; coords
        and labels as in ``PromptTokens``. ``kept``: indices of prompts with the IoU of one of the masks 1 to 3 >
        ``min_iou``.
        """
        prompt, image = self.transform((tokens, keys, values, queries), point_coords, point_labels)
        iou = self.iou_head(prompt[:, 0])
        kept = torch.nonzero(iou[:, 1:].amax(dim=1) > min_iou).squeeze(1)
        logits = self.upscaler(prompt.index_select(0, kept)[:, 1:5], image.index_select(0, kept))
        return iou, kept, logits

    def transform(
        self, features: tuple[Tensor, Tensor, Tensor, Tensor], point_coords: Tensor, point_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Prompt tokens [B, T, 256] and image tokens [B, 4096, 256] after the transformer."""
        placed, added = self.prompt_tokens(point_coords, point_labels)
        prompt, image = self._first_block(placed, added, *features)
        prompt, image = self._second_block(prompt, placed, added, image)
        seen = self.last(prompt + placed, image + self.positions, image)
        return self.last_norm(prompt + seen), image

    def _first_block(
        self, placed: Tensor, added: Tensor, tokens: Tensor, keys: Tensor, values: Tensor, queries: Tensor
    ) -> tuple[Tensor, Tensor]:
        block = self.blocks[0]
        prompt = block.norm1(self.self_attention[0](placed, placed, added))
        prompt = block.norm2(prompt + self.first_to_image.cached(prompt + placed, keys, values))
        prompt = block.norm3(prompt + block.mlp(prompt))
        image = block.norm4(tokens + self.first_to_tokens.cached(queries, prompt + placed, prompt, added))
        return prompt, image

    def _second_block(self, prompt: Tensor, placed: Tensor, added: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        block = self.blocks[1]
        image_placed = image + self.positions
        prompt = block.norm1(prompt + self.self_attention[1](prompt + placed, prompt, added))
        prompt = block.norm2(prompt + self.second_to_image(prompt + placed, image_placed, image))
        prompt = block.norm3(prompt + block.mlp(prompt))
        image = block.norm4(image + self.second_to_tokens(image_placed, prompt + placed, prompt, added))
        return prompt, image
