"""Writes the artifact folder of a network: ONNX, TorchScript and manifest, all or nothing."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from export.recipe import Recipe, images
from export.verify import TOLERANCE, Shape, measure_parity
from models.artifact import ONNX, TORCHSCRIPT, GraphInput, GraphOutput, Manifest, voc_palette, write_manifest
from models.onnx_import.artifact_builder import whole_folder

INPUT, OUTPUT = "input", "logits"
OPSET = 17
_TRACE_SIDE = 64  # pixels, for graphs of dynamic size


def write_artifact(
    recipe: Recipe, folder: Path, *, shapes: tuple[Shape, ...] | None = None, tolerance: float = TOLERANCE
) -> Manifest:
    """Write the artifact of a network to ``folder`` and return its manifest.

    Raises ParityError when ONNX Runtime or TorchScript differs from torch by more than ``tolerance`` on ``shapes``
    (default: ``parity_shapes``), and Conflict when the folder exists. After an error there is no folder.
    """
    row = recipe.row
    with whole_folder(folder) as staging:
        example = images(2, row.height or _TRACE_SIDE, row.width or _TRACE_SIDE, seed=0)
        write_onnx(recipe.network, example, staging / ONNX, classes=len(recipe.labels), dynamic_size=row.height is None)
        write_torchscript(recipe.network, example, staging / TORCHSCRIPT)
        parity = measure_parity(
            recipe.network,
            staging / ONNX,
            staging / TORCHSCRIPT,
            shapes or parity_shapes(row.height, row.width),
            tolerance=tolerance,
        )
        manifest = Manifest(
            family=row.family,
            task=row.task,
            architecture=row.architecture,
            input=GraphInput(name=INPUT, height=row.height, width=row.width),
            output=GraphOutput(name=OUTPUT),
            preprocess=row.preprocess,
            labels=recipe.labels,
            palette=voc_palette(len(recipe.labels)) if row.task == "segment" else (),
            weights=recipe.weights,
            licence=row.licence if recipe.weights.kind == "published" else "unknown",
            source=row.source if recipe.weights.kind == "published" else str(recipe.weights),
            opset=OPSET,
            parity=parity,
            metrics=dict(row.metrics) if recipe.weights.kind == "published" else {},
        )
        return write_manifest(staging, manifest)


def parity_shapes(height: int | None, width: int | None) -> tuple[Shape, ...]:
    """Batches of 1 and 3 images of the graph's size; of two sizes where it is dynamic (None).

    Those are neither square nor multiples of 32, so that rounding of feature map sizes is covered.
    """
    if height is not None and width is not None:
        return ((1, height, width), (3, height, width))
    return ((1, 136, 184), (3, 136, 184), (1, 260, 347))


def write_onnx(network: nn.Module, example: Tensor, path: Path, *, classes: int, dynamic_size: bool) -> None:
    """Write the network as an ONNX file of opset 17 with a dynamic batch and, with ``dynamic_size``, height and width.

    Uses torch's TorchScript-based exporter. On both networks of the zoo the newer one (``dynamo=True``) gave equal
    results at equal speed in ONNX Runtime, within noise, but took five times as long and needs another package
    (onnxscript). Constant folding merges BatchNorm into convolutions, which removes a third of the nodes.
    """
    axes = {0: "batch", 2: "height", 3: "width"} if dynamic_size else {0: "batch"}
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # the exporter's own deprecation; torch is pinned
        torch.onnx.export(
            network,
            (example,),
            str(path),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: axes, OUTPUT: axes},
            opset_version=OPSET,
            do_constant_folding=True,
            dynamo=False,
        )
    model = onnx.load(path)
    # Where the size is dynamic the exporter loses the number of classes.
    dims = model.graph.output[0].type.tensor_type.shape.dim
    dims[1].dim_value = classes
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def write_torchscript(network: nn.Module, example: Tensor, path: Path) -> None:
    """Write the network as traced TorchScript; batch, height and width stay dynamic where the network allows it."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracing's own deprecation; torch is pinned
        # measure_parity checks more than check_trace would.
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(path))
