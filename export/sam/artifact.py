"""Writes the artifact folder of a Segment Anything network: three graphs and the manifest, all or nothing."""

from __future__ import annotations

from pathlib import Path

import onnx

from export.sam.precision import measure_agreement, quantize
from export.sam.recipe import SamRecipe
from export.sam.verify import measure_parity
from export.sam.writer import OPSET, save, write_graphs
from export.verify import TOLERANCE
from models.artifact import ENCODER, Agreement, GraphInput, Manifest, Weights, write_manifest
from models.onnx_import.artifact_builder import whole_folder


def write_artifact(
    recipe: SamRecipe,
    folder: Path,
    *,
    precision: str = "float32",
    photos: Path | None = None,
    tolerance: float = TOLERANCE,
) -> Manifest:
    """Write the artifact of a network to ``folder`` and return its manifest.

    ``precision``: float32, or int8, which quantises the encoder after parity was measured at float32 and then measures
    the agreement of their masks on the images in the folder ``photos`` (None: on seeded images). Raises ParityError
    when a graph differs from torch by more than ``tolerance``, Conflict when the folder exists; no folder is left then.
    """
    row, published = recipe.row, recipe.weights.kind == "published"
    with whole_folder(folder) as staging:
        write_graphs(recipe.network, staging)
        parity = measure_parity(recipe.network, staging, tolerance=tolerance)
        manifest = Manifest(
            family=row.family,
            task=row.task,
            architecture=row.architecture,
            input=GraphInput(name="pixels", height=row.height, width=row.width),
            preprocess=row.preprocess,
            weights=recipe.weights,
            licence=row.licence if published else "unknown",
            source=row.source if published else str(recipe.weights),
            opset=OPSET,
            parity=parity,
        )
        if precision == "int8":
            manifest = manifest.model_copy(
                update={"precision": "int8", "agreement": _quantize_encoder(staging, manifest, photos, recipe.weights)}
            )
        return write_manifest(staging, manifest)


def _quantize_encoder(staging: Path, manifest: Manifest, photos: Path | None, weights: Weights) -> Agreement:
    """Replace the float32 encoder by its int8 version; return the agreement of their masks."""
    quantized = staging / "quantized.onnx"
    quantize(staging / ENCODER, quantized)
    agreement = measure_agreement(
        staging, quantized, manifest, photos, proven=weights.kind != "random" and photos is not None
    )
    model = onnx.load(quantized)
    for part in (*staging.glob(f"{ENCODER}*"), *staging.glob(f"{quantized.name}*")):
        part.unlink()
    save(model, staging / ENCODER)
    return agreement
