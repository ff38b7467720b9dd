"""Seeded random weights for Segment Anything whose outputs exercise masks, thresholds and small regions."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from export.recipe import images
from export.sam.decoder import ImageSide, PromptDecoder
from export.sam.reference_package import MLP, Attention, Sam, TwoWayAttentionBlock
from export.sam.upscaler import Upscaler

SIDE = 1024
_GRID = 4  # prompts per side of the calibration image
_RADII = (160.0, 90.0, 160.0, 280.0)  # pixels, of the masks of the four tokens
_STEEP = 10.0  # factor of the attention's scores
_VARIED = 0.3  # deviation of a mask's weights between prompts; the weight of a step is 10
_LOGITS = 10.0
_IOU, _IOU_SPREAD = 0.88, 0.06  # median, which is the reference generator's threshold, and deviation
_STABLE_SHARE = 0.5  # of the masks reach the reference generator's stability threshold 0.95


@torch.no_grad()
def calibrate(sam: Sam) -> None:
    """Change random weights so that outputs have the magnitudes of a trained network; draws from torch's generator.

    Embeddings get mean 0 and variance 1 in every channel, logits span about -10 to 10, and about half of the masks pass
    each default threshold of the reference's mask generator: predicted IoU 0.88, stability 0.95.
    """
    for name, parameter in sam.image_encoder.named_parameters():
        if name == "pos_embed" or "rel_pos" in name:
            nn.init.normal_(parameter, 0.0, 0.1)  # initialised with zeros, which would hide a wrong export
    _attend_near_the_point(sam)
    prompts = _Prompts(sam, _spread_embeddings(sam))
    _shape_masks(sam, prompts)
    _scale_ious(sam, prompts)


def _attend_near_the_point(sam: Sam) -> None:
    """Make image tokens attend to prompts near them, and the upscaler smooth, so that masks are connected regions."""
    prompts, (first, second) = sam.prompt_encoder, sam.mask_decoder.transformer.layers
    attention = cast(TwoWayAttentionBlock, second).cross_attn_image_to_token
    channels = _low_frequencies(sam, attention.internal_dim // 2)
    # A score is then the similarity of two positional encodings: a peak at the point, wide in the first head, which has
    # the lowest frequencies, and narrow in the last.
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight.copy_(torch.eye(attention.embedding_dim)[channels])
        nn.init.normal_(projection.bias, 0.0, 0.05)
    attention.k_proj.weight.mul_(_STEEP)
    for norm in (first.norm4, second.norm3):
        norm.weight[channels] *= 0.3  # so that image contents change the shape of the peak and do not hide it
    for embedding in (*prompts.point_embeddings, prompts.not_a_point_embed):
        embedding.weight.mul_(2.0)  # emphasises the kind of a point over its position
        embedding.weight[:, channels] = 0.0
    attention.v_proj.weight.mul_(8.0)
    attention.out_proj.weight.mul_(8.0)
    # Prompt tokens take less from the image; otherwise all prompts on an image would give nearly equal masks.
    for attenuated in (first.cross_attn_token_to_image, second.cross_attn_token_to_image, _last_attention(sam)):
        cast(Attention, attenuated).out_proj.weight.mul_(0.3)
    for convolution in (sam.mask_decoder.output_upscaling[0], sam.mask_decoder.output_upscaling[3]):
        weight = cast(nn.ConvTranspose2d, convolution).weight
        weight.copy_(4.0 * weight.mean(dim=(2, 3), keepdim=True) + 0.02 * weight)


def _last_attention(sam: Sam) -> Attention:
    return cast(Attention, sam.mask_decoder.transformer.final_attn_token_to_image)


def _low_frequencies(sam: Sam, count: int) -> Tensor:
    """Channels, int64 [2 * count], of the ``count`` lowest frequencies of the positional encoding: sine, cosine."""
    matrix = sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    lowest = matrix.norm(dim=0).argsort()[:count]
    return torch.stack([lowest, lowest + matrix.shape[1]], dim=1).flatten()


def _spread_embeddings(sam: Sam) -> Tensor:
    """Set the neck's last norm so that channels have mean 0 and variance 1; return the calibration embedding.

    The embedding is float32 [256, 64, 64], of a mosaic of four seeded images.
    """
    norm = sam.image_encoder.neck[3]
    four = images(4, SIDE // 2, SIDE // 2, seed=0)
    mosaic = torch.cat([torch.cat([four[0], four[1]], dim=2), torch.cat([four[2], four[3]], dim=2)], dim=1)
    embedding = sam.image_encoder(mosaic.unsqueeze(0))[0]
    mean, deviation = embedding.mean(dim=(1, 2)), embedding.std(dim=(1, 2)) + 1e-3
    norm.weight.div_(deviation)
    norm.bias.sub_(mean).div_(deviation)
    return cast(Tensor, (embedding - mean[:, None, None]) / deviation[:, None, None])


class _Prompts:
    """A grid of single points on the calibration image."""

    def __init__(self, sam: Sam, embedding: Tensor) -> None:
        self.sam = sam
        tokens = (embedding.flatten(1).T + sam.prompt_encoder.no_mask_embed.weight).unsqueeze(0)
        self.image = (tokens, *ImageSide(sam)(tokens))
        centres = (torch.arange(_GRID) + 0.5) * SIDE / _GRID
        points = torch.cartesian_prod(centres, centres).unsqueeze(1)
        self.coords = torch.cat([points, torch.zeros_like(points)], dim=1)

    def transform(self) -> tuple[Tensor, Tensor]:
        """Prompt tokens [n, 7, 256] and image tokens [n, 4096, 256] after the transformer."""
        decoder, labels = PromptDecoder(self.sam), torch.tensor([1.0, -1.0])
        done = [
            decoder.transform(self.image, part, labels.expand(len(part), 2)) for part in torch.split(self.coords, _GRID)
        ]
        return torch.cat([prompt for prompt, _ in done]), torch.cat([image for _, image in done])

    def near(self, radius: float) -> Tensor:
        """bool [n, 4096]: whether an image token is within ``radius`` pixels of the prompt's point."""
        centres = torch.arange(64) * 16.0 + 8.0
        x, y = (self.coords[:, :1, axis] - centres for axis in (0, 1))
        return (x.square()[:, None, :] + y.square()[:, :, None] < radius**2).flatten(1)


def _shape_masks(sam: Sam, prompts: _Prompts) -> None:
    """Make the logits of each mask token a step from the pixels near the point to the others, with a soft edge.

    Two channels of the last layer, ``gelu(z + 1) - gelu(z - 1)``, form the step. ``z`` is a linear discriminant of near
    and far pixels times a steepness, found by bisection: the steeper, the more masks are stable.
    """
    prompt, image = prompts.transform()
    upscaler = Upscaler(sam.mask_decoder, 64)
    doubled = torch.unflatten(upscaler.doubled(image), 0, (len(image), 4096, 4))
    directions = [_discriminant(doubled, prompts.near(radius)) for radius in _RADII]
    for index in range(len(_RADII)):
        _step(sam, index, prompt[:, 1 + index])
    low, high = 0.5, 30.0
    for _ in range(5):
        steepness = (low * high) ** 0.5
        for index, (direction, threshold) in enumerate(directions):
            _point_channels(sam, index, direction * steepness, threshold * steepness)
        features = Upscaler(sam.mask_decoder, 64).features(image)
        weights = torch.stack([mlp(prompt[:, 2 + index]) for index, mlp in enumerate(_hyper(sam)[1:])], dim=2)
        stable = (_stability(features @ weights) >= 0.95).float().mean()
        low, high = (low, steepness) if stable > _STABLE_SHARE else (steepness, high)


def _discriminant(features: Tensor, near: Tensor) -> tuple[Tensor, float]:
    """Direction [C] and threshold that separate features [n, 4096, 4, C] by ``near`` bool [n, 4096]; deviation 1."""
    inside, outside = features[near].flatten(0, 1), features[~near].flatten(0, 1)
    spread = inside.T.cov() + outside.T.cov()
    spread += 0.01 * spread.diagonal().mean() * torch.eye(len(spread))
    direction = torch.linalg.solve(spread, inside.mean(dim=0) - outside.mean(dim=0))
    values = features.flatten(0, 2)[::7] @ direction
    direction /= values.std()
    return direction, (values.quantile(1 - near.float().mean().item()) / values.std()).item()


def _point_channels(sam: Sam, index: int, direction: Tensor, threshold: float) -> None:
    """Set channels 2 i and 2 i + 1 of the last convolution to ``z + 1`` and ``z - 1``."""
    last = cast(nn.ConvTranspose2d, sam.mask_decoder.output_upscaling[3])
    for channel, shift in ((2 * index, 1.0), (2 * index + 1, -1.0)):
        last.weight[:, channel] = direction[:, None, None]
        cast(Tensor, last.bias)[channel] = shift - threshold


def _step(sam: Sam, index: int, tokens: Tensor) -> None:
    """Set the weights of one mask token: its two step channels, an offset, and small weights that vary by prompt."""
    mlp = _hyper(sam)[index]
    layer = cast(nn.Linear, mlp.layers[-1])
    layer.weight.mul_(_VARIED / mlp(tokens).std(dim=0).mean())
    layer.bias.sub_(mlp(tokens).mean(dim=0))
    # A step ranges from 0 to 2; the last channel is made constant, for the offset.
    last = cast(nn.ConvTranspose2d, sam.mask_decoder.output_upscaling[3])
    last.weight[:, -1] = 0.0
    cast(Tensor, last.bias)[-1] = 1.0
    layer.bias[2 * index] += _LOGITS
    layer.bias[2 * index + 1] -= _LOGITS
    layer.bias[-1] -= _LOGITS / nn.functional.gelu(torch.tensor(1.0)).item()


def _hyper(sam: Sam) -> list[MLP]:
    return list(sam.mask_decoder.output_hypernetworks_mlps)


def _stability(logits: Tensor) -> Tensor:
    """The reference's stability score, [n, masks], of low-resolution logits [n, pixels, masks]; 0 for empty masks."""
    inner, outer = ((logits > offset).sum(dim=1) for offset in (1.0, -1.0))
    return inner / outer.clamp(min=1)


def _scale_ious(sam: Sam, prompts: _Prompts) -> None:
    head = sam.mask_decoder.iou_prediction_head
    iou = head(prompts.transform()[0][:, 0])
    layer = cast(nn.Linear, head.layers[-1])
    scale = _IOU_SPREAD / iou.std(dim=0).clamp(min=1e-6)
    layer.weight.mul_(scale[:, None])
    layer.bias.copy_((layer.bias - iou.median(dim=0).values) * scale + _IOU)
