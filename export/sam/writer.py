"""Writes the graphs of a Segment Anything artifact: encoder, mask prompt and decoder, as ONNX files."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from export.sam.decoder import ImageSide, MaskPrompt, PromptDecoder
from export.sam.encoder import Encoder
from export.sam.reference_package import Sam
from models.artifact import DECODER, ENCODER, MASK_PROMPT

OPSET = 17
FEATURES = ("tokens", "keys", "values", "queries")
ONE_FILE_BYTES = 1_800_000_000
"""A graph with more bytes has its tensors in a file beside it: an ONNX file holds 2 GB at most."""

Axes = dict[str, dict[int, str]]


def write_graphs(sam: Sam, folder: Path, *, one_file_bytes: int = ONE_FILE_BYTES) -> None:
    """Write the three graphs into ``folder``. Tensors of a graph above ``one_file_bytes`` go to ``<name>.data``."""
    write_encoder(sam, folder / ENCODER, one_file_bytes)
    write_mask_prompt(sam, folder / MASK_PROMPT)
    write_decoder(sam, folder / DECODER)


def write_encoder(sam: Sam, path: Path, one_file_bytes: int = ONE_FILE_BYTES) -> None:
    """Write the graph of ``Encoder``: pixels to embedding and features, with a dynamic first axis."""
    side = sam.image_encoder.img_size
    outputs = ("embedding", *FEATURES)
    axes = {name: {0: "images"} for name in ("pixels", *outputs)}
    _write(Encoder(sam), (torch.zeros(1, 3, side, side),), path, ("pixels",), outputs, axes, one_file_bytes)


def write_mask_prompt(sam: Sam, path: Path) -> None:
    """Write the graph of ``MaskPrompt``: tokens of an image and M masks to features with each of them."""
    outputs = tuple(f"masked_{name}" for name in FEATURES)
    axes = {name: {0: "masks"} for name in ("mask_input", *outputs)}
    given = (_tokens(sam), torch.zeros(2, 1, *sam.prompt_encoder.mask_input_size))
    _write(MaskPrompt(sam), given, path, ("tokens", "mask_input"), outputs, axes)


def write_decoder(sam: Sam, path: Path) -> None:
    """Write the graph of ``PromptDecoder``: prompts, and features of one image or one per prompt, to masks."""
    names = (*FEATURES, "point_coords", "point_labels", "min_iou")
    axes: Axes = {name: {0: "images"} for name in FEATURES}
    axes |= {name: {0: "prompts", 1: "points"} for name in ("point_coords", "point_labels")}
    axes |= {"iou": {0: "prompts"}, "kept": {0: "kept"}, "logits": {0: "kept"}}
    tokens = _tokens(sam)
    with torch.inference_mode():
        features = (tokens, *ImageSide(sam)(tokens))
    given = (*features, torch.zeros(2, 3, 2), torch.ones(2, 3), torch.tensor(-torch.inf))
    _write(PromptDecoder(sam), given, path, names, ("iou", "kept", "logits"), axes)


def _tokens(sam: Sam) -> Tensor:
    height, width = sam.prompt_encoder.image_embedding_size
    return torch.zeros(1, height * width, sam.prompt_encoder.embed_dim)


def _write(
    network: nn.Module,
    given: tuple[Tensor, ...],
    path: Path,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    axes: Axes,
    one_file_bytes: int = ONE_FILE_BYTES,
) -> None:
    before = set(path.parent.iterdir())
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter's own deprecation; torch is pinned
        torch.onnx.export(
            network.eval(),
            given,
            str(path),
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            do_constant_folding=True,
            dynamo=False,
        )
    model = onnx.load(path)
    for other in set(path.parent.iterdir()) - before - {path}:
        other.unlink()  # above 2 GB the exporter writes each tensor to its own file; they are in memory now
    save(model, path, one_file_bytes)


def save(model: onnx.ModelProto, path: Path, one_file_bytes: int = ONE_FILE_BYTES) -> None:
    """Write the model and check it; with more than ``one_file_bytes`` its tensors go to ``<name>.data`` beside it."""
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > one_file_bytes:
        path.unlink(missing_ok=True)
        location = f"{path.name}.data"
        onnx.save(model, path, save_as_external_data=True, location=location, all_tensors_to_one_file=True)
        path.with_name(location).chmod(path.stat().st_mode)  # onnx creates it readable for its owner alone
    else:
        onnx.save(model, path)
    onnx.checker.check_model(str(path))
