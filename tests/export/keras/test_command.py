"""``python -m export keras``: what is refused early, what the child process gets, and how it may end."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ekiben.errors import BadModelFile
from export.__main__ import main
from export.keras import conversion
from export.keras.conversion import PREPROCESS, ConversionLimits, KerasMissing, build, keras_python
from models.artifact import read_manifest
from models.onnx_import.options import parse_options
from tests.models.onnx_import.onnx_files import classifier


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EKIBEN_HOME", str(tmp_path / "home"))
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    (tmp_path / "model.keras").write_bytes(b"PK")
    return tmp_path / "model.keras"


def given(model: Path, *more: str) -> list[str]:
    labels = str(model.parent / "labels.txt")
    return ["keras", str(model), "--name", "k", "--task", "classify", "--labels", labels, *more]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--preprocess", "tf", "--mean", "0.5"], "preprocess says mean, too: leave out --mean, or --preprocess"),
        (["--preprocess", "caffe", "--color", "RGB"], "preprocess says color, too"),
        (["--mean", "127.5"], "mean is of pixels scaled to 0-1"),
        (["--python", "/nowhere/python"], "/nowhere/python is no file"),
        (["--labels", "/nowhere/labels"], "/nowhere/labels cannot be read"),
        (["--name", "No Name", "--python", sys.executable], "a model's name is 1 to 63"),
    ],
)
def test_what_is_wrong_is_said_before_the_conversion(
    model: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    assert main(given(model, *more)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert err.count("\n") == 1


def test_a_file_that_is_not_there(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(given(model.with_name("other.h5"))) == 1
    assert "other.h5 cannot be read: No such file" in capsys.readouterr().err


def test_a_wrong_word_is_wrong_usage(model: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(given(model, "--preprocess", "imagenet"))
    assert ended.value.code == 2


def test_where_the_environment_is_missing_it_is_said_how_to_make_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion, "ROOT", tmp_path)
    with pytest.raises(KerasMissing, match="run make keras"):
        keras_python(None)


def test_the_ways_of_keras_applications() -> None:
    """On pixels p of 0 to 255: what keras.applications.imagenet_utils.preprocess_input does."""
    p = 200.0
    for name, expected in {
        "raw": p,
        "unit": p / 255,
        "tf": p / 127.5 - 1,
        "torch": (p / 255 - 0.485) / 0.229,
        "caffe": p - 103.939,
    }.items():
        steps = PREPROCESS[name]
        assert (p / 255 - steps.mean[0]) / steps.std[0] == pytest.approx(expected), name
        parse_options({"task": "classify", "labels": "a\nb", "mean": steps.mean, "std": steps.std})
    assert [name for name, steps in PREPROCESS.items() if steps.color == "BGR"] == ["caffe"]


def child(folder: Path, script: str) -> Path:
    """A Python of which every run is ``script``; what it gets is in ``sys.argv`` behind ``-m MODULE``."""
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport json, os, signal, sys\nrequest = json.loads(sys.argv[3])\n{script}\n")
    path.chmod(0o755)
    return path


CONVERTED = {
    "activation": "logits",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.25, 0.25, 0.25],
    "description": "Keras 3.15.1, Functional m",
    "parity": {"max_abs": 1e-7, "tolerance": 1e-3, "spread": 1.0, "largest": 2.0, "inputs": "seeded"},
    "notes": ["a note"],
}
OPTIONS = parse_options({"task": "classify", "labels": "a\nb\nc"})


def test_the_artifact_says_what_the_child_reported_and_the_child_has_no_keys(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EKIBEN_S3_SECRET_KEY", "secret")
    onnx = classifier(tmp_path / "made.onnx")
    python = child(
        tmp_path,
        f"import shutil; shutil.copy({str(onnx)!r}, request['target'])\n"
        f"open({str(tmp_path / 'seen')!r}, 'w').write(json.dumps([request, dict(os.environ)]))\n"
        f"open(sys.argv[4], 'w').write({json.dumps({'converted': CONVERTED})!r})",
    )
    assert main(given(model, "--python", str(python), "--preprocess", "tf")) == 0
    out, err = capsys.readouterr()
    assert out.startswith(
        "k version 1; parity: onnx 1.0e-07; weights: imported (model.keras, Keras 3.15.1, Functional m)"
    )
    assert err == "export: model.keras: a note\n"
    manifest = read_manifest(tmp_path / "home" / "blobs" / "models" / "k" / "1")
    assert manifest.parity is not None
    assert manifest.preprocess.mean == (0.5, 0.5, 0.5)
    assert manifest.preprocess.std == (0.25, 0.25, 0.25)
    request, environ = json.loads((tmp_path / "seen").read_text())
    assert (request["mean"], request["std"], request["labels"]) == ([0.5] * 3, [0.5] * 3, 3)
    assert not [name for name in environ if name.startswith("EKIBEN")]


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("sys.exit('Traceback: boom')", "the process that converted it failed: Traceback: boom"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "ended with SIGKILL; it may need too much memory"),
        ("os.kill(os.getpid(), signal.SIGXCPU)", "takes more than 1200 s of processor time"),
        ("open(sys.argv[4], 'w').write('{\"refused\": \"it is bad\"}')", "model.keras: it is bad"),
    ],
)
def test_however_the_child_ends_it_is_said(model: Path, tmp_path: Path, script: str, sentence: str) -> None:
    python = child(tmp_path, script)
    with pytest.raises(BadModelFile, match=sentence):
        build(model, tmp_path / "out", OPTIONS, python=python, prepared=True, activation=None)
    assert not (tmp_path / "out").exists()


def test_a_child_that_never_ends_is_stopped(model: Path, tmp_path: Path) -> None:
    python = child(tmp_path, "import time; time.sleep(600)")
    limits = ConversionLimits(wall_s=1.0)
    with pytest.raises(BadModelFile, match="takes more than 1 s"):
        build(model, tmp_path / "out", OPTIONS, python=python, prepared=True, activation=None, limits=limits)


def test_an_environment_without_tensorflow_is_said(model: Path, tmp_path: Path) -> None:
    """The process itself, in the Python of the tests, which has no TensorFlow."""
    model = model.parent  # a folder: a file is inspected before TensorFlow is needed
    with pytest.raises(KerasMissing, match="lacks tensorflow: run make keras"):
        build(model, tmp_path / "out", OPTIONS, python=Path(sys.executable), prepared=True, activation=None)
