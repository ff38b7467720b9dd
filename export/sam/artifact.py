"""One artifact folder from one Segment Anything: three graphs and the manifest, written whole or not at all."""

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
    """Make ``folder`` the artifact of a network and give back its manifest.

    ``precision`` int8 quantises the encoder after parity was measured at float32, and states how the masks of both
    agree on the images in ``photos`` (on seeded ones where None). ParityError, and no folder, when a graph differs
    from torch by more than ``tolerance``. Conflict when the folder is there.
    """
    row, known = recipe.row, recipe.weights.kind == "published"
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
            licence=row.licence if known else "unknown",
            source=row.source if known else str(recipe.weights),
            opset=OPSET,
            parity=parity,
        )
        if precision == "int8":
            manifest = manifest.model_copy(
                update={"precision": "int8", "agreement": _lighten(staging, manifest, photos, recipe.weights)}
            )
        return write_manifest(staging, manifest)


def _lighten(staging: Path, manifest: Manifest, photos: Path | None, weights: Weights) -> Agreement:
    """Put the 8-bit encoder in the place of the float32 one; how they agree."""
    lighter = staging / "lighter.onnx"
    quantize(staging / ENCODER, lighter)
    agreement = measure_agreement(
        staging, lighter, manifest, photos, proven=weights.kind != "random" and photos is not None
    )
    model = onnx.load(lighter)
    for part in (*staging.glob(f"{ENCODER}*"), *staging.glob(f"{lighter.name}*")):
        part.unlink()
    save(model, staging / ENCODER)
    return agreement
