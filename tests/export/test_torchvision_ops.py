"""torchvision is importable whether or not its compiled operators load."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")


@pytest.mark.parametrize("loads", [True, False])
def test_operators_are_declared_only_where_they_are_missing(loads: bool) -> None:
    # A fresh interpreter: a torchvision that is imported already would hide the difference.
    code = f"""
import torch
from export import torchvision_ops as ops
real = ops._compiled_operators_load()
if {loads} and not real:
    print("skip"); raise SystemExit
if not {loads}:
    ops._compiled_operators_load = lambda: False
had = hasattr(torch.ops.torchvision, "nms")
ops.declare_missing(); ops.declare_missing()
import torchvision.models
print(len(ops._declared) == (not had and not {loads}), torch.ops.torchvision.nms.default._schema)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    if done.stdout == "skip\n":
        pytest.skip("the compiled operators of this torchvision do not load beside this torch")
    declared, schema = done.stdout.split(" ", 1)
    assert declared == "True"
    assert schema.startswith("torchvision::nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
