"""Masks of prompts from an embedding, read from the decoder's output as segment_anything does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ekiben.errors import TooLarge
from models.engine.cancellation import RunCancellation
from models.masks.predicted_masks import PromptMask
from models.masks.rle import encode_region
from models.sam.embedding_cache import Embedding
from models.sam.graphs import Decoded, Features, SamGraphs
from models.sam.grids import longest_side_shape
from models.sam.prompts import Prompt, mask_inputs, point_tokens
from models.sam.upsampling import Upsampler

MAX_ASPECT = 64
"""Longest ratio of sides: beyond it the shorter side has less than 16 of the 1024 pixels of the encoder's input."""


def refuse_strip(width: int, height: int) -> None:
    """TooLarge for an image with a ratio of sides above MAX_ASPECT."""
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise TooLarge(f"the image is {width} x {height}; this model takes sides of 1 : {MAX_ASPECT} at most")


def decode_prompts(
    graphs: SamGraphs,
    embedding: Embedding,
    prompts: Sequence[Prompt],
    *,
    wide: bool,
    cancellation: RunCancellation | None = None,
) -> Decoded:
    """The decoder's output for some prompts on one image, with the masks of all of them. ``wide``: see SamGraphs."""
    size = embedding.info.height, embedding.info.width
    coords, labels = point_tokens(prompts, size, longest_side_shape(*size))
    features = _with_masks(graphs, embedding.features, prompts, cancellation)
    return graphs.decode(features, coords, labels, wide=wide, cancellation=cancellation)


def _with_masks(
    graphs: SamGraphs, features: Features, prompts: Sequence[Prompt], cancellation: RunCancellation | None
) -> Features:
    """The features of each prompt; one row for all of them where no prompt has a mask input."""
    index, masks = mask_inputs(prompts)
    if not index:
        return features
    masked = graphs.mask_features(features, masks, cancellation)
    return masked if len(index) == len(prompts) else features.rows(len(prompts)).replaced(index, masked)


def read_masks(
    decoded: Decoded, upsampler: Upsampler, *, multimask: bool, keep_logits: bool
) -> list[tuple[PromptMask, ...]]:
    """The masks of each prompt at the image's size: those of tokens 1 to 3 with ``multimask``, else that of token 0.

    ``keep_logits``: with the low-resolution logits, which a later prompt can refine.
    """
    tokens = (1, 2, 3) if multimask else (0,)
    answers = []
    for iou, masks in zip(decoded.iou, decoded.logits, strict=True):
        row = []
        for token in tokens:
            region = upsampler.region(masks[token])
            rle = encode_region(region.mask, region.top, region.left, upsampler.height, upsampler.width)
            logits = np.array(masks[token]) if keep_logits else None
            row.append(PromptMask(rle, float(iou[token]), region.stability, logits))
        answers.append(tuple(row))
    return answers
