"""Imports the reference package ``segment_anything``, here alone, after the operators of torchvision that it needs."""

from __future__ import annotations

from export.torchvision_ops import declare_missing

declare_missing()

from segment_anything.build_sam import build_sam_vit_b, build_sam_vit_h, build_sam_vit_l  # noqa: E402
from segment_anything.modeling import Sam  # noqa: E402
from segment_anything.modeling.image_encoder import Attention as EncoderAttention  # noqa: E402
from segment_anything.modeling.image_encoder import Block, get_rel_pos  # noqa: E402
from segment_anything.modeling.mask_decoder import MLP, MaskDecoder  # noqa: E402
from segment_anything.modeling.prompt_encoder import PromptEncoder  # noqa: E402
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock  # noqa: E402

__all__ = [
    "MLP",
    "Attention",
    "Block",
    "EncoderAttention",
    "MaskDecoder",
    "PromptEncoder",
    "Sam",
    "TwoWayAttentionBlock",
    "build_sam_vit_b",
    "build_sam_vit_h",
    "build_sam_vit_l",
    "get_rel_pos",
]
