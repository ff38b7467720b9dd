"""The process that reads a user's file: its limits, and what becomes of it when it breaks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ekiben.errors import BadModelFile
from models.onnx_import import graph_metadata
from models.onnx_import.artifact_builder import Limits, build_artifact, read_graph
from tests import toy_hostile
from tests.models.onnx_import.onnx_files import classifier, options


def test_a_graph_that_never_ends_is_stopped(tmp_path: Path) -> None:
    """On every image, on bright ones alone, on noise alone: each is found."""
    file = toy_hostile.looping(tmp_path / "loop.onnx", above=-1.0)
    with pytest.raises(BadModelFile, match=r"loop.onnx: .* zeros of .* more than 1 s of processor time$"):
        read_graph(file, limits=Limits(cpu_s=4))
    with pytest.raises(BadModelFile, match=r"loop.onnx: .* takes more than 0.2 s$"):
        read_graph(file, limits=Limits(wall_s=0.2))
    slow = r"loop.onnx: a trial run on {} takes more than 1 s of .* on black ones .*: how long it runs depends"
    file = toy_hostile.looping(tmp_path / "loop.onnx", above=1.9)
    with pytest.raises(BadModelFile, match=slow.format("white pixels")):
        read_graph(file, pixel_range=(-2.0, 2.0), limits=Limits(cpu_s=4))
    file = toy_hostile.looping(tmp_path / "loop.onnx", above=0.1, of="spread")
    with pytest.raises(BadModelFile, match=slow.format("noise")):
        read_graph(file, limits=Limits(cpu_s=4))
    file = toy_hostile.looping(tmp_path / "loop.onnx", above=2.0)  # not of an image, but of a tensor not scaled
    with pytest.raises(BadModelFile, match=slow.format("pixels of 255")):
        read_graph(file, limits=Limits(cpu_s=4))
    looped = read_graph(toy_hostile.looping(file, above=0.9, trips=1000.0))  # few rounds harm nobody
    assert looped.outputs[0].batched


def test_memory_that_depends_on_pixels_is_refused(tmp_path: Path) -> None:
    file = toy_hostile.allocating(tmp_path / "alloc.onnx", 4 << 30)
    with pytest.raises(BadModelFile, match=r"alloc.onnx: a trial run on white pixels needs more than 1024 MB of mem"):
        read_graph(file, limits=Limits(memory_bytes=1 << 30))
    file = toy_hostile.allocating(tmp_path / "alloc.onnx", 700 << 20)
    with pytest.raises(BadModelFile, match=r"on white pixels takes \d+ MB of memory, on black ones \d+: how much"):
        read_graph(file)
    spare = read_graph(toy_hostile.allocating(file, 100 << 20), limits=Limits(memory_bytes=4 << 30))
    assert spare.cost.memory_bytes > 90 << 20


def test_what_a_graph_costs_is_not_part_of_its_digest(tmp_path: Path) -> None:
    file = classifier(tmp_path / "model.onnx")
    made = build_artifact(file, tmp_path / "made", options())
    assert made.trial is not None and (made.trial.height, made.trial.width) == (8, 8)
    assert made.trial.seconds < 1 and made.trial.memory_bytes < 100 << 20
    slower = made.model_copy(update={"trial": made.trial.model_copy(update={"seconds": 9.0})})
    assert slower.digest == made.digest == made.model_copy(update={"trial": None}).digest


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
    arguments = [str(file), "NCHW", "0", "0", "0", "1", str(4 << 30), "30"]
    command = [sys.executable, "-m", "models.onnx_import.check_process", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, check=True, env={**os.environ})
    report = json.loads(done.stdout)["facts"]
    assert report["outputs"][0]["shape"] == [1, 3]
    assert [report[key] for key in ("batch", "height", "width", "opset")] == [None, 8, 8, 17]
