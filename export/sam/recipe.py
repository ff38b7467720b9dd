"""Segment Anything from a row of the zoo and a choice of weights to the package's own network in memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from export.recipe import load_state, read_checkpoint
from export.sam.random_weights import calibrate
from export.sam.reference_package import Sam, build_sam_vit_b, build_sam_vit_h, build_sam_vit_l
from export.zoo import Row
from models.artifact import Weights, sha256_of

BUILDERS: dict[str, Callable[[], Sam]] = {
    "vit_b": build_sam_vit_b,
    "vit_l": build_sam_vit_l,
    "vit_h": build_sam_vit_h,
}


@dataclass(frozen=True)
class SamRecipe:
    """The network in eval mode, and where its numbers come from."""

    row: Row
    network: Sam
    weights: Weights


def build(architecture: str) -> Sam:
    """The network in eval mode, freshly initialised."""
    return BUILDERS[architecture]().eval()


def random_sam(architecture: str, seed: int) -> Sam:
    """The network with seeded random weights that answers as a trained one does in kind: blobs about the points.

    Fresh weights give logits of 0.04 everywhere, of which no mask, threshold or small region can be made; these are
    shaped and scaled on seeded images of blobs and grain (``sam_random.calibrate``).
    """
    torch.manual_seed(seed)
    network = build(architecture)
    calibrate(network)
    return network


def published(row: Row, file: Path) -> SamRecipe:
    """The network with its published weights, read from ``file``. BadInput where they do not fit."""
    return SamRecipe(row, _loaded(row, file), Weights(kind="published", detail=row.file, sha256=sha256_of(file)))


def random(row: Row, seed: int) -> SamRecipe:
    """The network with seeded random weights: for shape, parity and speed, never for answers."""
    return SamRecipe(row, random_sam(row.architecture, seed), Weights(kind="random", detail=f"seed {seed}"))


def checkpoint(row: Row, file: Path) -> SamRecipe:
    """The network with the weights of ``file``: a state_dict, bare or under "state_dict" or "model"."""
    return SamRecipe(row, _loaded(row, file), Weights(kind="checkpoint", detail=file.name, sha256=sha256_of(file)))


def _loaded(row: Row, file: Path) -> Sam:
    network = build(row.architecture)
    load_state(network, read_checkpoint(file), file)
    return network
