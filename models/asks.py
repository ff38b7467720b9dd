"""Asks and answers: what every door hands to a model, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from models.results import ClassArea, ClassScore, PictureFacts

RENDERS = ("mask", "color", "overlay")
"""The pictures that can be made of a segmentation."""


@dataclass(frozen=True, slots=True)
class Ask:
    """``image``: encoded bytes. ``top_k``: classes to answer. ``renders``: pictures of a segmentation to make."""

    image: bytes
    top_k: int = 5
    renders: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """``scores`` of a classification or ``areas`` of a segmentation; ``renders``: PNG bytes by name."""

    picture: PictureFacts
    scores: tuple[ClassScore, ...] = ()
    areas: tuple[ClassArea, ...] = ()
    renders: Mapping[str, bytes] = field(default_factory=dict)
