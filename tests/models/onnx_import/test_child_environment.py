"""The child that reads a stranger's file: where it finds Ekiben, and what it is not given."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import models
from models.onnx_import import graph_metadata


def test_the_child_finds_the_packages_and_no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def run(command: list[str], *, stdout: Any, **given: Any) -> SimpleNamespace:
        seen.update(given, command=command)
        stdout.write(json.dumps({"facts": {}}).encode())
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(graph_metadata.subprocess, "run", run)
    monkeypatch.setenv("EKIBEN_S3_SECRET_KEY", "secret")
    graph_metadata._run_child("a.onnx", ["a.onnx"], graph_metadata.DEFAULT_LIMITS)
    first, *_ = seen["env"]["PYTHONPATH"].split(os.pathsep)
    assert Path(first) == Path(models.__file__).parents[1]
    assert not any(name.startswith("EKIBEN_") for name in seen["env"])
    assert seen["command"][1:3] == ["-m", "models.onnx_import.check_process"]
