"""Made once with the export environment: seeded weights for all contenders, and the graphs of the plain ONNX loop.

Run as ``.venv-torch/bin/python -m bench.sam.weights FOLDER``; writes ``weights.pth``, ``encoder.onnx`` and
``decoder.onnx``. The graphs are exported as the package's own script does it (``scripts/export_onnx_model.py``): the
decoder takes one image's embedding and one prompt, and enlarges the masks to the image's size.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch

from export.sam.recipe import random_sam

ARCHITECTURE, SEED, OPSET = "vit_b", 0, 17


def main(folder: Path) -> None:
    """Write the weights and both graphs into ``folder``."""
    from segment_anything.utils.onnx import SamOnnxModel

    sam = random_sam(ARCHITECTURE, SEED)
    torch.save(sam.state_dict(), folder / "weights.pth")
    pixels = torch.zeros(1, 3, sam.image_encoder.img_size, sam.image_encoder.img_size)
    _export(sam.image_encoder, {"pixels": pixels}, folder / "encoder.onnx", ["embedding"], {})
    given = {
        "image_embeddings": torch.zeros(1, 256, 64, 64),
        "point_coords": torch.zeros(1, 3, 2),
        "point_labels": torch.ones(1, 3),
        "mask_input": torch.zeros(1, 1, 256, 256),
        "has_mask_input": torch.zeros(1),
        "orig_im_size": torch.tensor([534.0, 800.0]),
    }
    axes = {name: {1: "points"} for name in ("point_coords", "point_labels")}
    names = ["masks", "iou_predictions", "low_res_masks"]
    _export(SamOnnxModel(sam, return_single_mask=False), given, folder / "decoder.onnx", names, axes)


def _export(
    network: torch.nn.Module,
    given: dict[str, torch.Tensor],
    path: Path,
    outputs: list[str],
    axes: dict[str, dict[int, str]],
) -> None:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            tuple(given.values()),
            str(path),
            input_names=list(given),
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=OPSET,
            do_constant_folding=True,
            dynamo=False,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
