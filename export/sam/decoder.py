"""Segment Anything's prompt encoder and mask decoder, arranged so that a prompt costs a third of the published way.

The answers are those of ``segment_anything.modeling`` (Kirillov et al., arXiv:2304.02643); the order of work is not.
A decoder layer joins few prompt tokens (T = 5 + points) with 4096 image tokens, so projecting the image tokens is
what costs. Three things save it:

- In block 0 the image side does not depend on the prompt: ``ImageSide`` computes it once per image.
- In block 1 and the last attention the projections move to the tokens' side, which is small:
  ``q . (W x + b) = (W^T q) . x + q . b``, and ``sum_i a_i (W x_i + b) = W (sum_i a_i x_i) + b``.
- The predicted IoUs need the tokens alone, so masks are upscaled for the prompts that pass a threshold.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from export.sam.reference_package import Attention, PromptEncoder, Sam, TwoWayAttentionBlock
from export.sam.upscaler import Upscaler

ABSENT = -2.0
"""Label of a point that takes no part: it lets prompts of different lengths share a batch."""

_MASKED = -1e9  # added to a score: its softmax is exactly 0


def dense_positions(prompts: PromptEncoder) -> Tensor:
    """Positional encoding of the image tokens, [4096, 256]."""
    return cast(Tensor, prompts.get_dense_pe()[0].flatten(1).T.contiguous().detach())


class ImageSide(nn.Module):
    """What block 0 needs of the image tokens: its own arrangement, read by ``PromptDecoder`` alone."""

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
    """Earlier logits as a prompt: the image tokens and their side of block 0, with a mask in place of none."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.downscaling = sam.prompt_encoder.mask_downscaling
        self.no_mask = sam.prompt_encoder.no_mask_embed.weight
        self.image_side = ImageSide(sam)

    def forward(self, tokens: Tensor, mask_input: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens [1, 4096, 256] and logits [M, 1, 256, 256] to tokens [M, 4096, 256] and what ``ImageSide`` gives."""
        masks = self.downscaling(mask_input).flatten(2).transpose(1, 2)
        # The tokens hold the embedding of "no mask", which the mask replaces.
        masked = tokens + (masks - self.no_mask)
        return masked, *self.image_side(masked)


class PromptTokens(nn.Module):
    """Points, box corners and the decoder's own five tokens."""

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
        """Tokens [B, 5 + P, 256] for coords [B, P, 2] and labels [B, P]; what to add to a score of each, [B, 5 + P]."""
        labels = labels.unsqueeze(2)
        placed = self.positions._pe_encoding((coords + 0.5) / self.side) * torch.ge(labels, 0).float()
        points = placed + torch.eq(labels, self.labels).float() @ self.kinds
        output = self.output.unsqueeze(0).expand(coords.shape[0], -1, -1)
        absent = torch.eq(labels.squeeze(2), ABSENT).float() * _MASKED
        return torch.cat([output, points], dim=1), torch.cat([output[:, :, 0] * 0.0, absent], dim=1)


class SelfAttention(nn.Module):
    """Attention among the tokens of each prompt, absent ones left out."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, queries: Tensor, values: Tensor, added: Tensor) -> Tensor:
        """[B, T, 256] for queries, which are the keys too, and values of that shape; ``added`` [B, T] to the scores."""
        own = self.attention
        q, k, v = (
            torch.unflatten(project(x), 2, (own.num_heads, -1)).transpose(1, 2)
            for project, x in ((own.q_proj, queries), (own.k_proj, queries), (own.v_proj, values))
        )
        scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(2, 3) + added[:, None, None, :]
        mixed = torch.softmax(scores, dim=-1) @ v
        return cast(Tensor, own.out_proj(mixed.transpose(1, 2).flatten(2)))


class FewTokens(nn.Module):
    """Between T tokens and 4096 image tokens, with every projection on the tokens' side."""

    eye: Tensor

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.attention = attention
        self.heads = attention.num_heads
        self.width = attention.internal_dim // attention.num_heads
        self.scale = 1.0 / math.sqrt(self.width)
        self.register_buffer("eye", torch.eye(self.heads).view(1, self.heads, 1, self.heads, 1))

    def spread(self, projected: Tensor) -> Tensor:
        """[B, T, heads * width] as a block-diagonal [B, heads * width, heads * T]: every head for itself."""
        parts = torch.unflatten(projected, 2, (self.heads, self.width)).permute(0, 2, 3, 1).unsqueeze(3)
        return (parts * self.eye).flatten(3).flatten(1, 2)


class TokensToImage(FewTokens):
    """Tokens that look at the image."""

    def cached(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[B, T, 256] for queries [B, T, 256] and projected keys [., 8, 16, 4096] and values [., 8, 4096, 16]."""
        q = torch.unflatten(self.attention.q_proj(queries) * self.scale, 2, (self.heads, -1)).transpose(1, 2)
        mixed = torch.softmax(q @ keys, dim=-1) @ values
        return cast(Tensor, self.attention.out_proj(mixed.transpose(1, 2).flatten(2)))

    def forward(self, queries: Tensor, placed: Tensor, image: Tensor) -> Tensor:
        """[B, T, 256] for queries [B, T, 256], image tokens with positions and without, [B, 4096, 256]."""
        own = self.attention
        requested = own.k_proj.weight.T @ self.spread(own.q_proj(queries) * self.scale)  # [B, 256, heads * T]
        scores = (placed @ requested).transpose(1, 2)  # the key's bias adds the same to all of a softmax
        seen = torch.softmax(scores, dim=-1) @ image  # [B, heads * T, 256]
        by_head = torch.unflatten(own.v_proj.weight.T, 1, (self.heads, -1)).transpose(0, 1)  # [heads, 256, width]
        mixed = (torch.unflatten(seen, 1, (self.heads, -1)) @ by_head).transpose(1, 2).flatten(2) + own.v_proj.bias
        return cast(Tensor, own.out_proj(mixed))


class ImageToTokens(FewTokens):
    """Image tokens that look at the prompt."""

    def cached(self, image_queries: Tensor, keys: Tensor, values: Tensor, added: Tensor) -> Tensor:
        """[B, 4096, 256] for projected image queries [., 4096, 128], keys and values [B, T, 256]."""
        requested = self.spread(self.attention.k_proj(keys) * self.scale)
        return self._mix(image_queries @ requested + self._added(added), values)

    def forward(self, placed: Tensor, keys: Tensor, values: Tensor, added: Tensor) -> Tensor:
        """[B, 4096, 256] for image tokens with positions [B, 4096, 256], keys and values [B, T, 256]."""
        own = self.attention
        requested = self.spread(own.k_proj(keys) * self.scale)
        bias = own.q_proj.bias @ requested
        return self._mix(placed @ (own.q_proj.weight.T @ requested) + (bias.unsqueeze(1) + self._added(added)), values)

    def _added(self, added: Tensor) -> Tensor:
        return added.unsqueeze(1).repeat(1, 1, self.heads)

    def _mix(self, scores: Tensor, values: Tensor) -> Tensor:
        shares = torch.softmax(torch.unflatten(scores, 2, (self.heads, -1)), dim=-1).flatten(2)
        own = self.attention
        # A head's shares add up to 1, so an eighth of the bias in each head's values is the bias: a pass less.
        given = self.spread(own.v_proj(values)).transpose(1, 2) @ own.out_proj.weight.T
        return cast(Tensor, shares @ (given + own.out_proj.bias / self.heads))


class PromptDecoder(nn.Module):
    """Prompts on one image (or each on its own) to predicted IoUs, and logits of those worth it."""

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
        """iou [B, 4], kept int64 [K] and logits [K, 4, 256, 256]; kept are those with an IoU of 1..3 > min_iou."""
        prompt, image = self.transform((tokens, keys, values, queries), point_coords, point_labels)
        iou = self.iou_head(prompt[:, 0])
        kept = torch.nonzero(iou[:, 1:].amax(dim=1) > min_iou).squeeze(1)
        logits = self.upscaler(prompt.index_select(0, kept)[:, 1:5], image.index_select(0, kept))
        return iou, kept, logits

    def transform(
        self, features: tuple[Tensor, Tensor, Tensor, Tensor], point_coords: Tensor, point_labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Prompt tokens [B, T, 256] and image tokens [B, 4096, 256] as the transformer leaves them."""
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
