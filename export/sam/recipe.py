"""Segment Anything in memory, as the package's network, from a row of the zoo and a choice of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from export.recipe import load_state, read_checkpoint
from export.sam.random_weights import calibrate
from export.sam.reference_package import Sam, build_sam_vit_b, build_sam_vit_h, build_sam_vit_l
from export.zoo import ZooRow
from models.artifact import Weights, sha256_of

BUILDERS: dict[str, Callable[[], Sam]] = {
    "vit_b": build_sam_vit_b,
    "vit_l": build_sam_vit_l,
    "vit_h": build_sam_vit_h,
}


@dataclass(frozen=True)
class SamRecipe:
    """The package's network in eval mode, and the origin of its weights."""

    row: ZooRow
    network: Sam
    weights: Weights


def build(architecture: str) -> Sam:
    """A newly initialised network in eval mode. ``architecture``: vit_b, vit_l or vit_h."""
    return BUILDERS[architecture]().eval()


def random_sam(architecture: str, seed: int) -> Sam:
    """A network with seeded random weights whose masks, like a trained one's, are regions around the points.

    Newly initialised weights give logits of about 0.04 everywhere, which exercise no mask, threshold or small region.
    ``random_weights.calibrate`` therefore rescales them on seeded images.
    """
    torch.manual_seed(seed)
    network = build(architecture)
    calibrate(network)
    return network


def published(row: ZooRow, file: Path) -> SamRecipe:
    """The network with its published weights, read from ``file``. Raises BadInput when they do not fit."""
    return SamRecipe(row, _loaded(row, file), Weights(kind="published", detail=row.file, sha256=sha256_of(file)))


def random(row: ZooRow, seed: int) -> SamRecipe:
    """The network with seeded random weights: for tests of shape, parity and speed; its masks mean nothing."""
    return SamRecipe(row, random_sam(row.architecture, seed), Weights(kind="random", detail=f"seed {seed}"))


def checkpoint(row: ZooRow, file: Path) -> SamRecipe:
    """The network with the weights of ``file``: a state_dict, bare or under "state_dict" or "model".

    Raises BadInput when they do not fit.
    """
    return SamRecipe(row, _loaded(row, file), Weights(kind="checkpoint", detail=file.name, sha256=sha256_of(file)))


def _loaded(row: ZooRow, file: Path) -> Sam:
    network = build(row.architecture)
    load_state(network, read_checkpoint(file), file)
    return network
