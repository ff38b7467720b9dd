"""The narrow Segment Anything and its artifact, exported once for all processes that run the tests."""

from __future__ import annotations

import copy
import dataclasses
import fcntl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from models.artifact import Weights

FINISHED = "finished"


@dataclass(frozen=True)
class NarrowExport:
    """``network`` answers as ``artifact`` does, whose precision is float32.

    ``calibrated``: a network of the same seed whose norms and biases were not moved.
    """

    network: Any
    calibrated: Any
    artifact: Path


def narrow_export(tmp_path_factory: pytest.TempPathFactory) -> NarrowExport:
    """Of seed 0, with every number of its norms and biases moved, then calibrated as the export's random weights are.

    The first process that needs it makes it: the folder is that of the whole run, and a lock holds the others back.
    """
    import torch

    from export.sam import artifact, random_weights
    from export.sam.recipe import SamRecipe
    from export.zoo import ZOO
    from tests.export import sam_narrow

    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if root.name.startswith("popen-gw") else root) / "narrow-export"
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    calibrated = sam_narrow.build().eval()
    network = sam_narrow.stirred(copy.deepcopy(calibrated), 1)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / FINISHED).exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(random_weights, "_GRID", 3)  # a quarter of the prompts, and of the time
                random_weights.calibrate(calibrated)
                random_weights.calibrate(network)
            torch.save([calibrated.state_dict(), network.state_dict()], folder / "weights.pt")
            row = dataclasses.replace(ZOO["sam_vit_b"], architecture="narrow")
            recipe = SamRecipe(row, network, Weights(kind="random", detail="seed 0"))
            artifact.write_artifact(recipe, folder / "artifact")
            (folder / FINISHED).touch()
    for each, weights in zip((calibrated, network), torch.load(folder / "weights.pt", weights_only=True), strict=True):
        each.load_state_dict(weights)
    return NarrowExport(network, calibrated, folder / "artifact")
