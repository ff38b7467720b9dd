"""The split into train, validation and test images: disjoint parts that stay stable when a dataset grows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from ekiben.dataset_archive import BadDataset
from ekiben.training import FEW_IMAGES, TrainingOptions

Assessment = Literal["holdout", "cross_validation"]

DEFAULT_FOLDS = 5
LEAST_FOLDS = 3


class Member(Protocol):
    """The properties of a sample that a split depends on."""

    @property
    def group(self) -> str:
        """Samples of one group, such as the slices of a volume, stay in one part."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the image's pixels."""


@dataclass(frozen=True)
class Parts:
    """Indices of the images of each part, ascending; disjoint, none empty. ``fold`` counts from 0."""

    fold: int
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """One division into parts (holdout), or one per fold, whose test parts together are all images.

    ``groups``: number of groups. ``digest``: SHA-256 of the test images, hexadecimal.
    """

    protocol: Assessment
    folds: tuple[Parts, ...]
    groups: int
    digest: str

    def info(self, seed: int) -> dict[str, Any]:
        """The split in the plan event and the result. Models with equal digests were evaluated on equal test images."""
        first = self.folds[0]
        whole = len(first.train) + len(first.validation) + len(first.test)
        return {
            "protocol": self.protocol,
            "folds": len(self.folds),
            "train": len(first.train),
            "validation": len(first.validation),
            "test": len(first.test) if self.protocol == "holdout" else whole,
            "images": whole,
            "groups": self.groups,
            "seed": seed,
            "digest": self.digest,
        }


def split_dataset(members: Sequence[Member], options: TrainingOptions) -> Split:
    """The split of these images. Raises BadDataset when there are too few groups for the parts.

    Whole groups are assigned to parts. Cross-validation when ``folds`` is given, or when there are fewer than
    FEW_IMAGES groups and neither share was set explicitly; else a single split.
    """
    places = _places(members, options.seed)
    groups = sorted(places, key=lambda group: (places[group], group))
    shares_given = bool({"validation_share", "test_share"} & options.model_fields_set)
    if options.folds is not None or (len(groups) < FEW_IMAGES and not shares_given):
        folds = _folds(members, groups, options.folds)
        protocol: Assessment = "cross_validation"
    else:
        folds = (_holdout(members, groups, places, options),)
        protocol = "holdout"
    return Split(protocol, folds, len(groups), _digest(members, folds))


def _places(members: Sequence[Member], seed: int) -> dict[str, float]:
    """Group -> a pseudo-random number in [0, 1) that depends on the seed and the group's images alone."""
    images: dict[str, set[str]] = {}
    for member in members:
        images.setdefault(member.group, set()).add(member.sha256)
    places = {}
    for group, names in images.items():
        text = f"{seed}\n" + "\n".join(sorted(names))
        places[group] = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48
    return places


def _holdout(members: Sequence[Member], groups: list[str], places: dict[str, float], options: TrainingOptions) -> Parts:
    """Groups placed below test_share are the test part, those from 1 - validation_share on the validation part.

    The place of a group does not depend on other groups, so that images added later do not move it. In a small dataset
    a part may by chance be far too small or large; it then takes or gives the nearest groups, until it has between half
    and one and a half of its share.
    """
    count = len(groups)
    if count < LEAST_FOLDS:
        raise BadDataset(_too_few(count, LEAST_FOLDS, "one each to train, to choose the checkpoint and to test"))
    test = _bounded(sum(places[group] < options.test_share for group in groups), options.test_share, count, count - 2)
    validation = _bounded(
        sum(places[group] >= 1 - options.validation_share for group in groups),
        options.validation_share,
        count,
        count - test - 1,
    )
    return _parts(members, 0, set(groups[count - validation :]), set(groups[:test]))


def _bounded(drawn: int, share: float, count: int, most: int) -> int:
    wanted = share * count
    low, high = max(1, int(wanted / 2)), max(1, int(1.5 * wanted + 0.5))
    return max(1, min(max(low, min(drawn, high)), most))


def _folds(members: Sequence[Member], groups: list[str], wanted: int | None) -> tuple[Parts, ...]:
    count = len(groups)
    folds = wanted or min(DEFAULT_FOLDS, count)
    if count < max(folds, LEAST_FOLDS):
        raise BadDataset(_too_few(count, max(folds, LEAST_FOLDS), "one for each fold"))
    dealt = [set(groups[fold::folds]) for fold in range(folds)]
    return tuple(_parts(members, fold, dealt[(fold + 1) % folds], dealt[fold]) for fold in range(folds))


def _parts(members: Sequence[Member], fold: int, validation: set[str], test: set[str]) -> Parts:
    def where(kept: Iterable[bool]) -> tuple[int, ...]:
        return tuple(index for index, keep in enumerate(kept) if keep)

    return Parts(
        fold,
        train=where(member.group not in validation and member.group not in test for member in members),
        validation=where(member.group in validation for member in members),
        test=where(member.group in test for member in members),
    )


def _digest(members: Sequence[Member], folds: tuple[Parts, ...]) -> str:
    """SHA-256 over the test images, fold by fold: two models can be compared when it is equal."""
    tested = [sorted(members[index].sha256 for index in fold.test) for fold in folds]
    return hashlib.sha256(json.dumps(tested).encode()).hexdigest()


def _too_few(count: int, least: int, why: str) -> str:
    images = "image (or volume)" if count == 1 else "images (or volumes)"
    return f"the dataset has {count} different {images}; at least {least} are needed: {why}"
