"""The catalog of families of one graph. A new family is one module and one row."""

from __future__ import annotations

from collections.abc import Callable

from models.artifact import Manifest
from models.classifier import Classifier
from models.family import Family
from models.segmenter import Segmenter
from models.unet import Unet

FAMILIES: dict[str, Callable[[Manifest], Family]] = {
    "classifier": Classifier,
    "segmenter": Segmenter,
    "unet": Unet,
}
"""By the manifest's ``family``. Segment Anything has graphs of its own: see ``models.sam``."""
