"""Splits: disjoint, by group, of the asked size, and stable when a dataset grows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import pytest

from ekiben.training import TrainingOptions
from training.split import BadDataset, Parts, Split, split_dataset


@dataclass(frozen=True)
class Image:
    group: str
    sha256: str


def images(count: int, per_group: int = 1, first: int = 0) -> list[Image]:
    return [
        Image(f"g{number // per_group}", hashlib.sha256(str(number).encode()).hexdigest())
        for number in range(first, first + count)
    ]


def check(split: Split, members: list[Image]) -> None:
    """Every fold's parts are disjoint, not empty, together everything, and cut through no group."""
    for fold in split.folds:
        parts = [set(fold.train), set(fold.validation), set(fold.test)]
        assert all(parts) and sum(map(len, parts)) == len(set.union(*parts)) == len(members)
        groups = [{members[index].group for index in part} for part in parts]
        assert sum(map(len, groups)) == len(set.union(*groups))


@pytest.mark.parametrize("count", [3, 5, 20, 160, 1000])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_single_split(count: int, seed: int) -> None:
    members = images(count)
    split = split_dataset(members, TrainingOptions(seed=seed, test_share=0.2))
    check(split, members)
    assert split.protocol == "holdout"
    assert 0.1 * count - 1 <= len(split.folds[0].test) <= max(1, 0.3 * count + 1)
    assert split == split_dataset(members, TrainingOptions(seed=seed, test_share=0.2))


def test_another_seed_is_another_split() -> None:
    members = images(100)
    tests = {split_dataset(members, TrainingOptions(seed=seed)).folds[0].test for seed in range(5)}
    assert len(tests) == 5


def test_an_image_keeps_its_part_when_the_dataset_grows_and_when_it_is_reordered() -> None:
    def part_of(members: list[Image]) -> dict[str, str]:
        fold = split_dataset(members, TrainingOptions()).folds[0]
        return {members[i].sha256: name for name in ("train", "validation", "test") for i in getattr(fold, name)}

    few, many = part_of(images(100)), part_of(images(300))
    assert few == {name: many[name] for name in few}
    assert part_of(images(100)[::-1]) == few
    renamed = [replace(image, group="x" + image.group) for image in images(100)]
    assert part_of(renamed) == few


def test_slices_of_a_volume_stay_together() -> None:
    members = images(400, per_group=10)
    split = split_dataset(members, TrainingOptions())
    check(split, members)
    assert split.protocol == "holdout" and split.groups == 40


def test_few_groups_are_cross_validated_unless_shares_are_given() -> None:
    members = images(190, per_group=10)  # 19 volumes
    split = split_dataset(members, TrainingOptions())
    check(split, members)
    assert split.protocol == "cross_validation" and len(split.folds) == 5
    tested = sorted(index for fold in split.folds for index in fold.test)
    assert tested == list(range(190))
    assert all(fold.validation == split.folds[(i + 1) % 5].test for i, fold in enumerate(split.folds))
    assert split_dataset(members, TrainingOptions(test_share=0.2)).protocol == "holdout"
    assert len(split_dataset(images(4), TrainingOptions()).folds) == 4
    assert len(split_dataset(images(100), TrainingOptions(folds=10)).folds) == 10


@pytest.mark.parametrize(
    ("count", "options", "words"),
    [
        (1, TrainingOptions(), "has 1 different image .* at least 3"),
        (2, TrainingOptions(test_share=0.3), "has 2 different images .* at least 3"),
        (4, TrainingOptions(folds=5), "has 4 different images .* at least 5"),
    ],
)
def test_too_few_images(count: int, options: TrainingOptions, words: str) -> None:
    with pytest.raises(BadDataset, match=words) as refused:
        split_dataset(images(count), options)
    assert refused.value.code == "bad_dataset"


def test_the_digest_says_who_judges() -> None:
    members = images(100)
    one = split_dataset(members, TrainingOptions())
    assert one.digest == split_dataset(members[::-1], TrainingOptions(epochs=3)).digest
    assert one.digest != split_dataset(members, TrainingOptions(seed=1)).digest
    assert isinstance(one.folds[0], Parts) and one.info(0)["digest"] == one.digest
