"""From fitted weights to the artifact that is served, with its parity against torch measured."""

from __future__ import annotations

import math
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
from training.fit import Diverged
from training.networks import channels_of, describe
from training.validation import Normalization

ARTIFACT = "artifact"
PROBE_BATCHES = (1, 2, 5)

_PARITY_TILES = 3
_SEEN_TILES = 64  # of an image, among which one is chosen


@dataclass(frozen=True)
class ServingMetadata:
    """Manifest contents besides the network.

    ``palette``: RGB 0-255 by class; ``detail``: dataset and epoch of the weights.

    ``threshold``: of the probability of class 1; None with more than two classes.
    """

    options: TrainingOptions
    labels: Sequence[str]
    palette: Sequence[tuple[int, int, int]]
    normalization: Normalization
    threshold: float | None
    dataset: str
    detail: str


def write_artifact(
    network: nn.Module, folder: Path, metadata: ServingMetadata, archive: TrainingData, indices: Sequence[int]
) -> Manifest:
    """Write the artifact of ``network`` to ``folder``, which is replaced; return its manifest, without metrics.

    ``indices``: images of ``archive`` whose patches are used for tracing and parity. Raises ParityError when ONNX
    Runtime or TorchScript differs from torch by more than ``export.verify.TOLERANCE`` on them, Diverged when
    the network gives values that are no numbers.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options, side = metadata.options, metadata.options.side
    # The exporters need contiguous strides; training uses the channels-last format.
    network = network.cpu().float().eval()
    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    manifest = Manifest(
        family="unet",
        task="segment",
        architecture=describe(options),
        input=GraphInput(name=INPUT, height=side, width=side),
        output=GraphOutput(name=OUTPUT, threshold=metadata.threshold if metadata.threshold is not None else 0.5),
        preprocess=Preprocess(mean=metadata.normalization.mean, std=metadata.normalization.std),
        tiling=None if options.image_size else Tiling(),
        labels=tuple(metadata.labels),
        palette=tuple(metadata.palette),
        weights=Weights(kind="trained", detail=metadata.detail),
        licence="unknown",
        source=f"trained on the dataset {metadata.dataset}",
        opset=OPSET,
    )
    tiles = _tiles(manifest, archive, indices)
    with torch.inference_mode():
        if not bool(torch.isfinite(network(tiles)).all()):
            raise Diverged("the trained network gives values that are no numbers; try a lower learning_rate")
    write_onnx(network, tiles[:2], folder / ONNX, classes=channels_of(len(metadata.labels)), dynamic_size=False)
    write_torchscript(network, tiles[:2], folder / TORCHSCRIPT)
    parity = measure_parity(
        network,
        folder / ONNX,
        folder / TORCHSCRIPT,
        (),
        real=[tiles, tiles[:1]],
        real_from=f"{len(tiles)} patches of {side} x {side} of images that were not trained on, together and alone",
    )
    return write_manifest(folder, manifest.model_copy(update={"parity": parity}))


def probe_export(network: nn.Module, options: TrainingOptions, classes: int, folder: Path) -> None:
    """Export a network that was not trained, and compare it with torch at batch sizes 1, 2 and 5.

    Before the first epoch: what cannot be exported must not be found out after hours. Writes to ``folder``, which is
    removed. Raises ParityError.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        network = network.cpu().float().eval()
        source = torch.Generator().manual_seed(0)
        pixels = torch.randn(max(PROBE_BATCHES), 3, options.side, options.side, generator=source)
        write_onnx(network, pixels[:2], folder / ONNX, classes=channels_of(classes), dynamic_size=False)
        write_torchscript(network, pixels[:2], folder / TORCHSCRIPT)
        measure_parity(
            network,
            folder / ONNX,
            folder / TORCHSCRIPT,
            (),
            real=[pixels[:batch] for batch in PROBE_BATCHES],
            real_from="noise",
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _tiles(manifest: Manifest, archive: TrainingData, indices: Sequence[int]) -> Tensor:
    """Patches float32 [N, 3, side, side], N >= 2, of the first images, cut and normalised as at serve time.

    Of each image the patch with the most contrast: in one of a single colour, such as the corner of a scan, there is
    only rounding for a network to normalise, and it differs from one runtime to another.
    """
    family = Unet(manifest)
    cut = []
    for index in list(indices)[:_PARITY_TILES]:
        pixels = np.asarray(family.resized(archive.image(index)))
        tiles = family.tiles(*pixels.shape[:2])
        seen = (np.asarray(family.cut(pixels, tile)) for tile in tiles[:: math.ceil(len(tiles) / _SEEN_TILES)])
        cut.append(torch.from_numpy(max(seen, key=np.std)))
    return torch.stack(cut * _PARITY_TILES)[: max(2, len(cut))]
