"""One artifact folder from one network: ONNX, TorchScript and the manifest, written whole or not at all."""

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
_TRACE_SIDE = 64


def write_artifact(
    recipe: Recipe, folder: Path, *, shapes: tuple[Shape, ...] | None = None, tolerance: float = TOLERANCE
) -> Manifest:
    """Make ``folder`` the artifact of a network and give back its manifest.

    ParityError, and no folder, when ONNX Runtime or TorchScript differs from torch by more than ``tolerance`` on
    ``shapes`` (batch, height, width; where not given, those of ``parity_shapes``). Conflict when the folder is there.
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
    """Batches of 1 and 3; of two sizes, neither square nor a multiple of 32, where the graph's size is dynamic."""
    if height is not None and width is not None:
        return ((1, height, width), (3, height, width))
    return ((1, 136, 184), (3, 136, 184), (1, 260, 347))


def write_onnx(network: nn.Module, example: Tensor, path: Path, *, classes: int, dynamic_size: bool) -> None:
    """The network as one ONNX file of opset 17 with a dynamic batch, and dynamic height and width where asked.

    This is torch's TorchScript-based exporter. The newer one (``dynamo=True``) was tried on both networks: the same
    numbers and, within noise, the same speed in ONNX Runtime, but it takes five times as long and needs a further
    package (onnxscript). Constant folding, which merges BatchNorm into the convolutions before it, saves a third
    of the nodes.
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
    """The traced network; batch, height and width stay as free as they are in the network."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # tracing's own deprecation; torch is pinned
        # Unchecked here: measure_parity checks more than tracing would.
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(path))
