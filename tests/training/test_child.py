"""The program as its parent sees it: lines, exit statuses, refusals, limits, and its end when the parent is gone."""

from __future__ import annotations

import json
import os
import signal
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import training.fit
import training.validation
from ekiben.errors import Refusal
from tests.training import discs
from training.__main__ import is_out_of_memory
from training.checkpoint import CHECKPOINT
from training.fit import Diverged

LONG: dict[str, Any] = {"epochs": 2000, "patience": 0}


def test_it_ends_with_its_parent_and_goes_on_where_it_was(tmp_path: Path) -> None:
    folder = discs.folder_of(tmp_path, LONG)
    process = discs.start(folder, "--with-parent")
    assert process.stdout is not None and process.stdin is not None
    _read_until(process.stdout, "file")
    process.stdin.close()
    assert process.wait(timeout=20) == 3
    said = [json.loads(line) for line in process.stdout.read().splitlines()]  # every line is whole
    assert all(set(line) <= {"event", "data", "progress", "file"} for line in said)
    (folder / "options.json").write_text(json.dumps({**discs.SMALL, **LONG}))
    again = discs.start(folder, "--with-parent")
    assert again.stdout is not None
    plan = _read_until(again.stdout, "plan")["data"]
    assert plan["resumed_epoch"] >= 1
    first = _read_until(again.stdout, "epoch")
    assert first["data"]["epoch"] == plan["resumed_epoch"] + 1
    again.send_signal(signal.SIGTERM)
    assert again.wait(timeout=20) == -signal.SIGTERM


def test_a_training_by_the_command_line(tmp_path: Path) -> None:
    process = discs.start(discs.folder_of(tmp_path, {"epochs": 1}))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    loaded = [line for line in lines if line.get("data", {}).get("phase") != "load"]  # it is slow to begin, and says so
    assert list(lines[-1]) == ["result"] and loaded[0]["event"] == "plan"
    assert set(lines[-1]["result"]) == {"metrics", "split", "training"}


def test_out_of_memory_is_said(tmp_path: Path) -> None:
    folder = discs.folder_of(tmp_path, {"tile": 2048, "batch_size": 64, "width": 32})
    said = discs.refusal(folder, "--memory-mb", "1500")
    assert said["code"] == "out_of_memory"
    assert "1500 MB" in said["message"] and "batch_size" in said["message"]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried", True),
        ("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes", True),
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True),
        ("std::bad_alloc", True),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_what_means_out_of_memory(text: str, meant: bool) -> None:
    assert is_out_of_memory(RuntimeError(text)) is meant


def test_a_loss_that_is_no_number_is_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = discs.folder_of(tmp_path, {"epochs": 3})
    steps = 0

    def poisoned(images: Any) -> Any:
        nonlocal steps
        steps += 1
        return images * (np.nan if steps == 3 else 1.0)

    normal = training.validation.Normalization.__call__
    monkeypatch.setattr(
        training.validation.Normalization, "__call__", lambda self, images: poisoned(normal(self, images))
    )
    with pytest.raises(Diverged, match=r"epoch \d+, step \d+, at a learning rate of .* no longer a number"):
        discs.trained(folder)


def test_a_loss_that_explodes_and_stays_is_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No option that is accepted makes these networks explode: what counts as an explosion is lowered instead.
    monkeypatch.setattr(training.fit, "EXPLODED", 0.001)
    with pytest.raises(Diverged, match=r"epoch 7, step \d+, .* rose to .* learning_rate") as refused:
        discs.trained(discs.folder_of(tmp_path, {"epochs": 60, "patience": 0}))
    assert refused.value.code == "diverged"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_bytes(b"no archive"), "not a prepared dataset: File is not a zip file"),
        (lambda path: path.unlink(), "not a prepared dataset: No such file"),
        (lambda path: zipfile.ZipFile(path, "w").close(), "dataset.json"),
        (lambda path: discs.write_archive(path, discs.images(2)), "2 different images"),
        (lambda path: discs.write_archive(path, discs.images(24, 3), 2), "class 2, the dataset 2 classes"),
        (
            lambda path: discs.write_archive(path, [(image, mask[:50]) for image, mask in discs.images(24)]),
            "its mask",
        ),
        (lambda path: discs.write_archive(path, discs.images(24), description={"format": 2}), "format 2"),
        (lambda path: discs.write_archive(path, discs.images(24), description={"classes": []}), "classes"),
    ],
    ids=["bytes", "missing", "empty", "few", "class", "size", "format", "no classes"],
)
def test_bad_datasets(spoil: Any, words: str, tmp_path: Path) -> None:
    folder = discs.folder_of(tmp_path, {"epochs": 1})
    spoil(folder / "dataset.zip")
    with pytest.raises(Refusal, match=words) as refused:
        discs.trained(folder)
    assert refused.value.code == "bad_dataset"


@pytest.mark.parametrize(("text", "words"), [("{", "options.json"), ('{"tile": 33}', "tile"), ('{"x": 1}', "x")])
def test_bad_options(text: str, words: str, tmp_path: Path) -> None:
    folder = discs.folder_of(tmp_path, {})
    (folder / "options.json").write_text(text)
    with pytest.raises(Refusal, match=words) as refused:
        discs.trained(folder)
    assert refused.value.code == "bad_options"


def test_a_damaged_or_foreign_checkpoint_is_not_gone_on_from(tmp_path: Path) -> None:
    folder = discs.folder_of(tmp_path, {"epochs": 1})
    (folder / CHECKPOINT).write_bytes(os.urandom(1000))
    assert discs.trained(folder).events("plan")[0]["resumed_epoch"] is None
    (folder / "options.json").write_text(json.dumps({**discs.SMALL, "epochs": 2}))
    said = discs.trained(folder)
    assert said.events("plan")[0]["resumed_epoch"] is None
    assert [event["epoch"] for event in said.events("epoch")] == [1, 2]


def test_a_refusal_is_the_last_line_and_the_status_is_2(tmp_path: Path) -> None:
    folder = discs.folder_of(tmp_path, {}, count=2)
    assert discs.refusal(folder)["code"] == "bad_dataset"


def _read_until(stream: Any, kind: str) -> dict[str, Any]:
    for line in stream:
        found: dict[str, Any] = json.loads(line)
        if found.get("event") == kind or kind in found:
            return found
    raise AssertionError(f"no {kind} was said")
