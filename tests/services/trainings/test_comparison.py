"""Comparing: models are judged side by side only by images that none of them has seen."""

from __future__ import annotations

from typing import Any

import pytest

from db.tables import Job
from services.trainings.comparison import compare

Told = tuple[Job, dict[str, Any], dict[str, Any]]


def training(name: str, parts: dict[str, tuple[str, float | None]], **parameters: Any) -> Told:
    """``parts``: by image, the part that it was in and its Dice."""
    known = {"dataset_id": "d", "dataset": "cells", "options": {"epochs": 3}, "name": name}
    job = Job(id=name, kind="training", operation="train", total=1, timeout_s=1.0, parameters={**known, **parameters})
    result = {
        "model": {"name": name, "version": 1},
        "metrics": {"dice": 0.5},
        "training": {"parameters": 1000, "bytes": 4000},
    }
    samples: list[dict[str, Any]] = [
        {"name": f"{image}.png", "sha256": image, "part": part, "dice": dice, "per_class": []}
        for image, (part, dice) in parts.items()
    ]
    return job, result, {"samples": samples}


def test_the_same_split() -> None:
    one = training("one", {"a": ("train", None), "b": ("test", 0.8), "c": ("test", 0.6)})
    two = training("two", {"a": ("validation", None), "c": ("test", 0.7), "b": ("test", 1.0)})
    found = compare([one, two])
    assert (found.same_split, found.common_images) == (True, 2)
    assert [row["common_dice"] for row in found.rows] == pytest.approx([0.7, 0.85])
    assert found.rows[0] == {
        "id": "one",
        "model": {"name": "one", "version": 1},
        "dataset_id": "d",
        "dataset": "cells",
        "options": {"epochs": 3},
        "metrics": {"dice": 0.5},
        "common_dice": found.rows[0]["common_dice"],
        "training": {"parameters": 1000, "bytes": 4000},
    }
    assert [row["id"] for row in compare([two, one]).rows] == ["two", "one"]  # as asked for


def test_only_images_that_none_has_seen() -> None:
    one = training("one", {"a": ("test", 0.9), "b": ("test", 0.5), "c": ("train", None)})
    two = training("two", {"a": ("train", None), "b": ("test", 0.7), "c": ("test", 0.1)})
    three = training("three", {"b": ("test", 0.2), "e": ("test", 1.0)})
    found = compare([one, two, three])
    assert (found.same_split, found.common_images) == (False, 1)
    assert [row["common_dice"] for row in found.rows] == [0.5, 0.7, 0.2]


def test_nothing_in_common() -> None:
    one, two = training("one", {"a": ("test", 0.9)}), training("two", {"b": ("test", 0.7)})
    found = compare([one, two])
    assert (found.same_split, found.common_images) == (False, 0)
    assert [row["common_dice"] for row in found.rows] == [None, None]


def test_images_in_which_there_is_nothing_to_find() -> None:
    """Dice None: neither truth nor prediction has any class there. It is no 0, and no 1."""
    one = training("one", {"a": ("test", None), "b": ("test", 0.4), "c": ("test", 0.0)})
    two = training("two", {"a": ("test", None), "b": ("test", None), "c": ("test", None)})
    found = compare([one, two])
    assert (found.same_split, found.common_images) == (True, 3)
    assert [row["common_dice"] for row in found.rows] == [pytest.approx(0.2), None]


def test_a_dataset_without_a_name() -> None:
    """Of a job that was submitted before names were kept."""
    one = training("one", {"a": ("test", 0.9)})
    del one[0].parameters["dataset"]
    assert compare([one, one]).rows[0]["dataset"] is None
