"""The catalog of model families. A new family is one module and one row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ekiben.errors import BadModelFile
from models.artifact import Manifest, Task
from models.classifier import Classifier
from models.engine.loaded_model import LoadedModel
from models.engine.session_options import SessionOptions
from models.family import Family
from models.model_key import ModelKey
from models.sam.auto_options import AutoOptions
from models.sam.loader import load_sam
from models.segmenter import Segmenter
from models.unet import Unet


@dataclass(frozen=True, slots=True)
class FamilyRow:
    """One family.

    ``task``: what its models answer. ``build``: the family of a manifest, where a model is one graph; else ``load``
    makes a warm model of an artifact folder. ``parameters``: what a request of the Open Inference Protocol may set
    besides ``store``. ``shares_runs``: an image is one input of the network, and several images share a run.
    """

    task: Task
    build: Callable[[Manifest], Family] | None = None
    load: Callable[[ModelKey, Path, SessionOptions], LoadedModel] | None = None
    parameters: tuple[str, ...] = ()
    shares_runs: bool = True


FAMILIES: dict[str, FamilyRow] = {
    "classifier": FamilyRow("classify", Classifier),
    "segmenter": FamilyRow("segment", Segmenter),
    "unet": FamilyRow("segment", Unet, parameters=("flips",), shares_runs=False),
    "sam": FamilyRow(
        "masks", load=load_sam, parameters=("multimask", "prompts", *AutoOptions.model_fields), shares_runs=False
    ),
}
"""By the manifest's ``family``."""


def family_row(name: str) -> FamilyRow:
    """The row of a family. BadModelFile lists those that there are."""
    if name not in FAMILIES:
        raise BadModelFile(f"there is no model family {name[:40]!r}; there are {', '.join(FAMILIES)}")
    return FAMILIES[name]


def row_of(manifest: Manifest) -> FamilyRow:
    """The row of a manifest's family. BadModelFile for an unknown one, and for a task that is another family's."""
    row = family_row(manifest.family)
    if row.task != manifest.task:
        raise BadModelFile(f"a {manifest.family} does not {manifest.task}")
    return row


def build_family(manifest: Manifest) -> Family:
    """The family of a model of one graph. BadModelFile where it has several, or the manifest does not suit it."""
    build = row_of(manifest).build
    if build is None:
        raise BadModelFile(f"a {manifest.family} is not one graph")
    return build(manifest)
