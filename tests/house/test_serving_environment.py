"""Serving never needs torch, and what serving installs is what the Bento installs."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

from tests.serving import ROOT, environ

_PROBE = """
import json, sys
import services.gateway, services.runner_service, services.__main__, export.__main__, export.provision
import models.onnx_import.artifact_builder, models.catalog, models.engine.loader
print(json.dumps([m for m in sys.modules if m.split(".")[0] in ("torch", "torchvision", "onnx")]))
"""


def test_nothing_the_gateway_imports_brings_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE], cwd=ROOT, env=environ(tmp_path), text=True, capture_output=True, check=True
    )
    brought = json.loads(done.stdout.strip().splitlines()[-1])
    assert [name for name in brought if name.split(".")[0] != "onnx"] == []


def test_the_bento_installs_what_serving_installs() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bento = yaml.safe_load((ROOT / "bentofile.yaml").read_text())
    assert bento["python"]["packages"] == project["dependencies"]
    assert not any(name.startswith("torch") for name in project["dependencies"])
    assert not any("export" in pattern or "tests" in pattern for pattern in bento["include"])


def test_the_gateway_leaves_a_runner_s_metrics_to_the_runner(tmp_path: Path) -> None:
    """In the split topology a family that the gateway defines too would hide the runner's under its own zeros."""
    modules = "services.rest.app, services.app_state, services.rpc.server"
    code = f"import sys, {modules}; print('services.runners.metrics' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environ(tmp_path), text=True, capture_output=True, check=True
    )
    assert done.stdout.strip() == "False"
