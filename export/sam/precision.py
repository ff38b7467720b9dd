"""The int8 encoder of Segment Anything, and the agreement of its masks with those of the float32 encoder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from export.recipe import images
from export.sam.verify import PromptCase, Sessions
from export.verify import SEED
from models.artifact import Agreement, Manifest
from models.images import decode
from models.preprocess import Preprocessor

PHOTO_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
_POINTS = 4  # per side of the grid
_SYNTHETIC = 2  # seeded images where there are no photos

Floats = NDArray[np.float32]


def quantize(source: Path, target: Path) -> None:
    """Write ``source`` to ``target`` with int8 weights, one scale per channel, in every product with a weight matrix.

    Activations are quantised dynamically. Convolutions, norms and attention stay float32, and so do the projections of
    ``ImageSide``: they cost little, and the decoder's inputs then match the embedding exactly.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source, load_external_data=False)
    # Tables of three axes (relative positions) have no channel scales.
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in matrices]
    nodes = [node.name for node in products if not node.name.startswith("/image_side/")]
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it recommends a preprocessing step for static quantisation
    try:
        quantize_dynamic(
            source,
            target,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=nodes,
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=source.stat().st_size < sum(_bytes(tensor) for tensor in model.graph.initializer),
        )
    finally:
        logging.disable(disabled)


def _bytes(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims)) * 4


def measure_agreement(
    folder: Path, quantized: Path, manifest: Manifest, photos: Path | None, *, proven: bool
) -> Agreement:
    """Mean and least IoU between masks of the encoder ``quantized`` and of the one in ``folder``, with one decoder.

    Prompts are a grid of points on every image. Of the three masks of a point, the one with the highest IoU predicted
    from the float32 embedding is compared, at 256 x 256 without the padding. ``photos``: folder of images, None: seeded
    images. ``proven`` is copied into the result.
    """
    sessions, quantized_sessions = Sessions(folder), Sessions(folder, encoder=quantized)
    ious: list[float] = []
    names: list[str] = []
    for name, pixels, height, width in _images(manifest, photos):
        prompts = _grid(height, width)
        names.append(name)
        full, light = (each.decode(each.encode(pixels), prompts) for each in (sessions, quantized_sessions))
        best = full["iou"][:, 1:].argmax(axis=1) + 1
        rows = np.arange(len(prompts))
        window = (slice(None), slice(0, round(height / 4)), slice(0, round(width / 4)))
        masks, others = ((each["logits"][rows, best] > 0)[window] for each in (full, light))
        ious += [_iou(mask, other) for mask, other in zip(masks, others, strict=True)]
    return Agreement(
        reference="float32",
        mask_iou_mean=float(np.mean(ious)),
        mask_iou_min=float(np.min(ious)),
        proven=proven,
        inputs=f"{_POINTS}x{_POINTS} points on each of {', '.join(names)}; masks at 256x256",
    )


def _images(manifest: Manifest, photos: Path | None) -> Iterator[tuple[str, Floats, int, int]]:
    """Name, input of the graph float32 [1, 3, side, side], and height and width of its part that is not padding."""
    side = manifest.input.height or 0
    if photos is None:
        for index, pixels in enumerate(images(_SYNTHETIC, side, side, seed=SEED).numpy()):
            yield f"seeded image {index + 1}", pixels[None], side, side
        return
    prepare = Preprocessor(manifest)
    for path in sorted(path for path in photos.iterdir() if path.suffix.lower() in PHOTO_SUFFIXES):
        rgb = decode(path.read_bytes()).rgb
        width, height = prepare.resize(rgb).size
        tensor: Any = prepare(rgb)
        yield path.name, tensor[None], height, width


def _grid(height: int, width: int) -> tuple[PromptCase, ...]:
    centres = (np.arange(_POINTS) + 0.5) / _POINTS
    return tuple(PromptCase(((float(x * width), float(y * height), 1.0),)) for y in centres for x in centres)


def _iou(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    union = int((mask | other).sum())
    return int((mask & other).sum()) / union if union else 1.0
