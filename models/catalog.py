"""The catalog: which families there are. A new family is one module and one row."""

from __future__ import annotations

from models.classifier import Classifier
from models.family import Family
from models.segmenter import Segmenter

FAMILIES: dict[str, type[Family]] = {
    "classifier": Classifier,
    "segmenter": Segmenter,
}
