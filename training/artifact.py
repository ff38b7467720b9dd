"""From fitted weights to the artifact that will be served, and proof that it is them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ekiben.training import TrainingOptions
from export.verify import measure_parity
from export.writer import INPUT, OPSET, OUTPUT, write_onnx, write_torchscript
from models.artifact import (
    ONNX,
    TORCHSCRIPT,
    GraphInput,
    GraphOutput,
    Manifest,
    Preprocess,
    Tiling,
    Weights,
    write_manifest,
)
from models.unet import Unet
from training.data import TrainingData
from training.networks import channels_of, describe
from training.validation import Normalization

ARTIFACT = "artifact"

_PARITY_TILES = 3


@dataclass(frozen=True)
class ServingMetadata:
    """What the manifest says besides the network: how it is fed and read. ``detail``: where the numbers come from."""

    options: TrainingOptions
    labels: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    normal: Normalization
    threshold: float | None
    dataset: str
    detail: str


def write_artifact(
    network: nn.Module, folder: Path, served: ServingMetadata, archive: TrainingData, indices: Sequence[int]
) -> Manifest:
    """Make ``folder`` the artifact of ``network`` and give back its manifest, which has no metrics yet.

    ParityError when ONNX Runtime or TorchScript differs from torch by more than 1e-3 on windows of these images.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options, side = served.options, served.options.side
    # The exporters want plain strides; what is trained has its channels last.
    network = network.cpu().float().eval()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    manifest = Manifest(
        family="unet",
        task="segment",
        architecture=describe(options),
        input=GraphInput(name=INPUT, height=side, width=side),
        output=GraphOutput(name=OUTPUT, threshold=served.threshold if served.threshold is not None else 0.5),
        preprocess=Preprocess(mean=served.normal.mean, std=served.normal.std),
        tiling=None if options.image_size else Tiling(),
        labels=tuple(served.labels),
        palette=tuple(served.palette),
        weights=Weights(kind="trained", detail=served.detail),
        licence="unknown",
        source=f"trained on the dataset {served.dataset}",
        opset=OPSET,
    )
    tiles = _tiles(manifest, archive, indices)
    write_onnx(network, tiles[:2], folder / ONNX, classes=channels_of(len(served.labels)), dynamic_size=False)
    write_torchscript(network, tiles[:2], folder / TORCHSCRIPT)
    parity = measure_parity(
        network,
        folder / ONNX,
        folder / TORCHSCRIPT,
        (),
        real=[tiles, tiles[:1]],
        real_from=f"{len(tiles)} windows of {side} x {side} of images that were not trained on, together and alone",
    )
    return write_manifest(folder, manifest.model_copy(update={"parity": parity}))


def _tiles(manifest: Manifest, archive: TrainingData, indices: Sequence[int]) -> Tensor:
    """float32 [N, 3, side, side] of the first images, cut and normalised by the family that will be served."""
    family = Unet(manifest)
    cut = []
    for index in list(indices)[:_PARITY_TILES]:
        pixels = np.asarray(family.resized(archive.image(index)))
        first = family.tiles(*pixels.shape[:2])[0]
        cut.append(torch.from_numpy(np.asarray(family.cut(pixels, first))))
    return torch.stack(cut * _PARITY_TILES)[: max(2, len(cut))]
