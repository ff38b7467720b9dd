"""The process that reads a user's file: its limits, and what becomes of it when it breaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from ekiben.errors import BadModelFile
from models.onnx_import import graph_metadata
from models.onnx_import.artifact_builder import Limits, read_graph
from tests.models.onnx_import.onnx_files import FLOAT, classifier, image, save, scores


def test_a_graph_that_never_ends_is_stopped(tmp_path: Path) -> None:
    count = numpy_helper.from_array(np.array(2**62, np.int64), "count")
    state = [helper.make_tensor_value_info("x", FLOAT, ["n", 3])]
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still_on"]), helper.make_node("Neg", ["x"], ["y"])],
        "body",
        [scores(name="i", kind=TensorProto.INT64), scores(name="on", kind=TensorProto.BOOL), *state],
        [scores(name="still_on", kind=TensorProto.BOOL), helper.make_tensor_value_info("y", FLOAT, ["n", 3])],
    )
    for value in (*body.input[:2], body.output[0]):
        value.type.tensor_type.shape.Clear()
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["pooled"], axes=[2, 3], keepdims=0),
        helper.make_node("Loop", ["count", "", "pooled"], ["scores"], body=body),
    ]
    file = save(tmp_path / "loop.onnx", nodes, [image()], [scores()], initializer=[count])
    with pytest.raises(BadModelFile, match=r"loop.onnx: .* more than 2 s of processor time"):
        read_graph(file, limits=Limits(cpu_s=2))
    with pytest.raises(BadModelFile, match=r"loop.onnx: .* more than 1 s$"):
        read_graph(file, limits=Limits(wall_s=1.0))


def test_the_child_gets_no_secret_and_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = tmp_path / "spy"
    spy.write_text(f"""#!{sys.executable}
import json, os, resource, sys
from models.onnx_import.check_process import limit
limit(int(sys.argv[-2]), int(sys.argv[-1]))
try:
    open({str(tmp_path / "big")!r}, "wb").write(b"x" * (2 << 20)); wrote = True
except OSError:
    wrote = False
print(json.dumps({{"refused": json.dumps([sorted(os.environ), wrote, resource.getrlimit(resource.RLIMIT_AS)[0]])}}))
""")
    spy.chmod(0o755)
    monkeypatch.setenv("EKIBEN_S3_SECRET_KEY", "hidden")
    monkeypatch.setattr(graph_metadata.sys, "executable", str(spy))
    file = classifier(tmp_path / "model.onnx")
    with pytest.raises(BadModelFile) as refused:
        read_graph(file, limits=Limits(memory_bytes=1 << 30))
    environment, wrote, memory = json.loads(refused.value.message.removeprefix("model.onnx: "))
    assert not [name for name in environment if name.startswith("EKIBEN")]
    assert wrote is False
    assert memory == (1 << 30) + 4 * file.stat().st_size


def test_a_child_that_crashes_is_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = tmp_path / "spy"
    spy.write_text("#!/bin/sh\nkill -SEGV $$\n")
    spy.chmod(0o755)
    monkeypatch.setattr(graph_metadata.sys, "executable", str(spy))
    with pytest.raises(BadModelFile, match=r"^model.onnx: the process that read it ended with SIGSEGV"):
        read_graph(classifier(tmp_path / "model.onnx"))


def test_the_module_runs_as_a_command(tmp_path: Path) -> None:
    file = classifier(tmp_path / "model.onnx")
    arguments = [str(file), "NCHW", "0", "0", str(4 << 30), "30"]
    command = [sys.executable, "-m", "models.onnx_import.check_process", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, check=True, env={**os.environ})
    report = json.loads(done.stdout)["facts"]
    assert report["outputs"][0]["shape"] == [1, 3]
    assert [report[key] for key in ("batch", "height", "width", "opset")] == [None, 8, 8, 17]
