"""Whole trainings of discs: what they learn, what they say, what they leave in the folder, and how they go on."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import training.fit
from ekiben.errors import Refusal
from models.artifact import ONNX, TORCHSCRIPT, read_manifest, verify
from models.engine.session import open_session
from models.engine.session_options import SessionOptions
from models.unet import Unet
from tests.training import discs
from training.checkpoint import Checkpoint
from training.metrics import counts, dice


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, discs.Said]:
    folder = discs.folder_of(tmp_path_factory.mktemp("learned"), {"epochs": 12}, count=40)
    return folder, discs.trained(folder)


def test_discs_are_learned_and_the_reported_dice_is_that_of_the_artifact(learned: tuple[Path, discs.Said]) -> None:
    folder, said = learned
    result = said.said_result
    assert result["metrics"]["dice"] > 0.9
    manifest = read_manifest(folder / "artifact")
    verify(folder / "artifact", manifest)
    assert manifest.metrics == result["metrics"]
    assert manifest.weights.kind == "trained" and manifest.source.endswith("discs")
    assert manifest.parity is not None and manifest.parity.onnx_max_abs <= 1e-3
    assert (manifest.parity.torchscript_max_abs or 0) <= 1e-3
    judged = [row for row in json.loads((folder / "evaluation.json").read_text())["samples"] if row["part"] == "test"]
    family = Unet(manifest)
    session = open_session(folder / "artifact", manifest, SessionOptions(device="cpu", threads=2))
    for row in judged:
        rgb, truth = discs.images(40)[int(row["name"].split(".")[0])]
        predicted = family.class_map(family.predict(Image.fromarray(rgb), session.run))
        assert row["dice"] == pytest.approx(dice(counts(predicted, truth, 2))[1], abs=1e-9)
    assert result["metrics"]["dice"] == pytest.approx(np.mean([row["dice"] for row in judged]), abs=1e-9)


def test_every_image_has_one_part(learned: tuple[Path, discs.Said]) -> None:
    folder, said = learned
    parts = [row["part"] for row in json.loads((folder / "evaluation.json").read_text())["samples"]]
    split = said.said_result["split"]
    assert {name: parts.count(name) for name in ("train", "validation", "test")} == {
        name: split[name] for name in ("train", "validation", "test")
    }
    assert len(parts) == 40 and min(split["train"], split["validation"], split["test"]) > 0


def test_what_is_said_while_it_runs(learned: tuple[Path, discs.Said]) -> None:
    folder, said = learned
    (plan,) = said.events("plan")
    assert plan["classes"] == ["background", "disc"] and plan["parameters"] > 1000
    epochs = said.events("epoch")
    assert [event["epoch"] for event in epochs] == list(range(1, 13))
    assert set(epochs[0]) >= {"train_loss", "validation_loss", "dice", "iou", "per_class", "learning_rate", "seconds"}
    assert epochs[-1]["learning_rate"] < 1e-4 < epochs[3]["learning_rate"]
    progress = [line["progress"] for line in said.lines if "progress" in line]
    assert progress == sorted(progress) and progress[-1] <= 1
    for event in said.events("preview"):
        assert Image.open(folder / event["file"]).size[0] > 1000
    assert {"file": "checkpoint.pt"} in said.lines and {"file": "evaluation.json"} in said.lines
    assert any(path.name.startswith("events.") for path in (folder / "tensorboard").iterdir())
    best = max(epochs, key=lambda event: event["dice"])
    assert said.said_result["training"]["folds"][0]["best_epoch"] == best["epoch"]


def _curve(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points of each curve of TensorBoard but the speed, by its name."""
    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    names = [name for name in found.Tags()["scalars"] if not name.startswith("images_per_s")]
    return {name: [(point.step, point.value) for point in found.Scalars(name)] for name in names}


class Killed(Exception):
    """Stands for the end of the process at that moment."""


@pytest.mark.parametrize("options", [{}, {"folds": 3}], ids=["holdout", "folds"])
def test_going_on_gives_what_an_unbroken_training_gives(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 3, "augmentation": "strong", **options}
    whole = discs.trained(discs.folder_of(tmp_path / "whole", options, count=12 if "folds" in options else 24))
    broken = discs.folder_of(tmp_path / "broken", options, count=12 if "folds" in options else 24)
    write = Checkpoint.write
    last = {"holdout": 2, "folds": 6}["folds" if "folds" in options else "holdout"]  # in the middle of the second fold
    written = 0

    def write_and_die(self: Checkpoint, folder: Path) -> None:
        nonlocal written
        write(self, folder)
        written += 1
        torch.rand(3), np.random.rand(3)  # a process that died has left its generators anywhere
        if written == last:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoint, "write", write_and_die)
        discs.trained(broken)
    for path in (broken / "tensorboard", broken / "previews"):  # a worker that takes over has the checkpoint alone
        shutil.rmtree(path, ignore_errors=True)
    resumed = discs.trained(broken)
    assert _curve(broken) == _curve(tmp_path / "whole")
    (plan,) = resumed.events("plan")
    assert plan["resumed_epoch"] == 2
    same, other = read_manifest(tmp_path / "whole/artifact"), read_manifest(broken / "artifact")
    assert other.files[ONNX].sha256 == same.files[ONNX].sha256
    assert resumed.said_result["metrics"] == whole.said_result["metrics"]
    told = [(event["fold"], event["epoch"]) for event in whole.events("epoch")]
    assert [(event["fold"], event["epoch"]) for event in resumed.events("epoch")] == told[
        -len(resumed.events("epoch")) :
    ]


def test_few_images_are_cross_validated_and_all_of_them_judge(tmp_path: Path) -> None:
    folder = discs.folder_of(tmp_path, {"epochs": 4}, count=9)
    said = discs.trained(folder)
    result = said.said_result
    assert result["metrics"]["protocol"] == "cross_validation" and result["metrics"]["images"] == 9
    samples = json.loads((folder / "evaluation.json").read_text())["samples"]
    assert all(row["part"] == "test" and row["dice"] is not None for row in samples)
    assert [fold["fold"] for fold in result["training"]["folds"]] == [0, 1, 2, 3, 4]
    assert not list(folder.glob("fold-*"))
    thresholds = sorted(fold["threshold"] for fold in result["training"]["folds"])
    assert read_manifest(folder / "artifact").only_output.threshold == result["metrics"]["threshold"] == thresholds[2]


def test_three_classes(tmp_path: Path) -> None:
    said = discs.trained(discs.folder_of(tmp_path, {"epochs": 14}, count=30, classes=3))
    found = said.said_result["metrics"]
    assert found["threshold"] is None
    assert [row["class_name"] for row in found["per_class"]] == ["disc", "ring"]
    assert min(row["dice"] for row in found["per_class"]) > 0.85
    assert found["dice"] == pytest.approx(np.mean([row["dice"] for row in found["per_class"]]))


def test_start_from_takes_weights_and_refuses_what_does_not_fit(
    learned: tuple[Path, discs.Said], tmp_path: Path
) -> None:
    source, _ = learned
    given = {"epochs": 1, "learning_rate": 1e-6, "start_from": "discs"}
    folder = discs.folder_of(tmp_path / "fits", given)
    (folder / "start").symlink_to(source / "artifact")
    assert discs.trained(folder).said_result["metrics"]["dice"] > 0.9
    for options, classes, words in (({"width": 8}, 2, "width 4"), ({}, 3, "ring")):
        other = discs.folder_of(tmp_path / words, {**given, **options}, classes=classes)
        (other / "start").symlink_to(source / "artifact")
        with pytest.raises(Refusal, match=words) as refused:
            discs.trained(other)
        assert refused.value.code == "bad_start"


def test_time_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second whenever it is read: a few times in each of some ten steps of an epoch."""
    seconds = itertools.count(1000.0)
    monkeypatch.setattr(training.fit, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    said = discs.trained(discs.folder_of(tmp_path, {"epochs": 2000, "max_minutes": 2, "patience": 0}))
    epochs = said.events("epoch")
    assert 1 < len(epochs) < 2000 and epochs[-1]["learning_rate"] < 1e-4
    assert 60 < said.said_result["training"]["folds"][0]["fit_s"] < 130  # some time is left for what comes after


def test_the_reported_threshold_is_the_one_of_the_manifest(learned: tuple[Path, discs.Said]) -> None:
    folder, said = learned
    threshold = said.said_result["metrics"]["threshold"]
    assert 0.1 <= threshold <= 0.9
    assert read_manifest(folder / "artifact").only_output.threshold == threshold
    assert (folder / "artifact" / TORCHSCRIPT).is_file()
