"""Several processes learn what one learns: torch's launcher on the same module, by gloo on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.training import discs


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    # light: grain is drawn on the device that computes, and is not the same on two.
    options = {"epochs": 2, "augmentation": "light", "folds": 3}
    alone = discs.trained(discs.folder_of(tmp_path / "alone", options))
    folder = discs.folder_of(tmp_path / "both", options)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = discs.start(folder, before=launcher)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert next(line for line in lines if line.get("event") == "plan")["data"]["processes"] == 2
    epochs = [line["data"] for line in lines if line.get("event") == "epoch"]
    assert len(epochs) == len(alone.events("epoch"))  # only the first process speaks
    for one, both in zip(alone.events("epoch"), epochs, strict=True):
        assert both["train_loss"] == pytest.approx(one["train_loss"], rel=1e-2)
        assert both["dice"] == pytest.approx(one["dice"], abs=0.02)
    assert lines[-1]["result"]["metrics"]["dice"] == pytest.approx(alone.said_result["metrics"]["dice"], abs=0.02)
