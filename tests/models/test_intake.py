"""Users' ONNX files: what becomes an artifact, and the sentence for each that does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from ekiben.errors import BadInput, BadModelFile, Conflict
from models import graph_facts, intake_child
from models.artifact import read_manifest, verify, voc_palette
from models.import_options import ImportOptions, parse_labels, parse_options, read_labels, read_palette
from models.intake import Limits, build_artifact, read_graph, whole_folder
from models.intake_checks import Refused, read_file

FLOAT = TensorProto.FLOAT
VOC_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)


def shared(name: str) -> Path:
    path = Path(__file__).parents[2].parent / "shared" / "data" / name
    if not path.exists():
        pytest.skip(f"{path} is missing: the real models are not part of the project")
    return path


def save(path: Path, nodes: list[Any], inputs: list[Any], outputs: list[Any], **extra: Any) -> Path:
    """An ONNX file of opset 17; ``extra`` goes to make_graph, ``opset`` and ``domains`` excepted."""
    opsets = [helper.make_opsetid("", extra.pop("opset", 17))]
    opsets += [helper.make_opsetid(domain, 1) for domain in extra.pop("domains", [])]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, **extra)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def image(*shape: int | str | None, name: str = "input", kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape or ["n", 3, 8, 8])


def scores(*shape: int | str | None, name: str = "scores", kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape or ["n", 3])


def classifier(
    path: Path, classes: int = 3, *, shape: tuple[Any, ...] = ("n", 3, 8, 8), last: str = "Identity"
) -> Path:
    """Mean over the pixels, then a linear layer of seeded weights and a bias of 0, 1, 2, ..."""
    weight = numpy_helper.from_array(np.random.default_rng(0).normal(size=(3, classes)).astype(np.float32), "w")
    bias = numpy_helper.from_array(np.arange(classes, dtype=np.float32), "b")
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["pooled"], axes=[2, 3], keepdims=0),
        helper.make_node("Gemm", ["pooled", "w", "b"], ["mixed"]),
        helper.make_node(last, ["mixed"], ["scores"]),
    ]
    return save(path, nodes, [image(*shape)], [scores("n", classes)], initializer=[weight, bias])


def segmenter(
    path: Path, channels: int, *, shape: tuple[Any, ...] = ("n", 3, "h", "w"), last: str = "Identity"
) -> Path:
    """One 1x1 convolution."""
    weight = numpy_helper.from_array(np.ones((channels, 3, 1, 1), np.float32), "w")
    nodes = [helper.make_node("Conv", ["input", "w"], ["mixed"]), helper.make_node(last, ["mixed"], ["scores"])]
    return save(path, nodes, [image(*shape)], [scores("n", channels, "h", "w")], initializer=[weight])


def options(task: str = "classify", labels: Any = "a\nb\nc", **given: Any) -> ImportOptions:
    return parse_options({"task": task, "labels": labels, **given})


# --- real models --------------------------------------------------------------------------------------------------


def test_mobilenet_becomes_an_artifact(tmp_path: Path) -> None:
    source = shared("models/mobilenet_v2")
    given = options(
        labels=read_labels(source / "labels.txt"),
        mean=str(128 / 255),
        std=str(128 / 255),
        crop="0.875",
        output="probabilities",
        licence="Apache-2.0",
        source="Coral",
    )
    made = build_artifact(source / "model.onnx", tmp_path / "artifact", given)
    assert (made.input.name, made.input.batch, made.input.height, made.input.width) == ("input", 1, 224, 224)
    assert (made.output.name, made.output.activation) == ("probabilities", "probabilities")
    assert (len(made.labels), made.labels[0], made.labels[3]) == (
        1001,
        "background",
        "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias",
    )
    assert (made.preprocess.crop_share, made.preprocess.mean) == (0.875, (128 / 255,) * 3)
    assert (made.weights.kind, made.weights.sha256) == ("imported", made.files["model.onnx"].sha256)
    assert (made.precision, made.opset, made.licence, made.source) == ("float32", 17, "Apache-2.0", "Coral")
    assert read_manifest(tmp_path / "artifact") == made
    verify(tmp_path / "artifact", made)
    assert (tmp_path / "artifact" / "model.onnx").read_bytes() == (source / "model.onnx").read_bytes()


def test_deeplab_becomes_an_artifact_with_the_labels_above_the_blank_line(tmp_path: Path) -> None:
    source = shared("models/deeplabv3_voc")
    labels = read_labels(source / "labels.txt")
    assert " ".join(labels) == VOC_NAMES
    made = build_artifact(
        source / "model.onnx", tmp_path / "artifact", options("segment", labels, mean="0.5", std="0.5")
    )
    assert (made.input.height, made.input.width, made.output.layout) == (513, 513, "NCHW")
    assert made.palette == voc_palette(21)


def test_portrait_unet_gets_a_background_and_keeps_its_dynamic_batch(tmp_path: Path) -> None:
    model = shared("models/portrait_unet") / "model.onnx"
    made = build_artifact(model, tmp_path / "artifact", options("segment", "person", output="sigmoid"))
    assert (made.labels, made.input.batch, made.opset) == (("background", "person"), None, 7)
    facts = read_graph(model)
    reference = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    zeros = reference.run(None, {facts.input_name: np.zeros((1, 3, 256, 256), np.float32)})[0]
    assert facts.outputs[0].shape == zeros.shape
    assert facts.outputs[0].high == pytest.approx(float(zeros.max()), abs=1e-4)


def test_a_forgotten_softmax_is_noticed(tmp_path: Path) -> None:
    source = shared("models/mobilenet_v2")
    with pytest.raises(BadInput, match="add up to 1; say probabilities, not logits"):
        build_artifact(source / "model.onnx", tmp_path / "artifact", options(labels=read_labels(source / "labels.txt")))
    assert list(tmp_path.iterdir()) == []


# --- files that cannot become a model -----------------------------------------------------------------------------


def _truncated(path: Path) -> None:
    whole = classifier(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def _external(location: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        weight = TensorProto(name="w", data_type=FLOAT, dims=[3, 3], data_location=TensorProto.EXTERNAL)
        weight.external_data.add(key="location", value=location)
        nodes = [
            helper.make_node("ReduceMean", ["input"], ["pooled"], axes=[2, 3], keepdims=0),
            helper.make_node("MatMul", ["pooled", "w"], ["scores"]),
        ]
        save(path, nodes, [image()], [scores()], initializer=[weight])

    return write


def _external_in_a_branch(path: Path) -> None:
    hidden = TensorProto(name="k", data_type=FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    hidden.external_data.add(key="location", value="/etc/passwd")
    value = [helper.make_tensor_value_info("y", FLOAT, None)]
    branch = helper.make_graph([helper.make_node("Constant", [], ["y"], value=hidden)], "branch", [], value)
    condition = numpy_helper.from_array(np.array(True), "yes")
    nodes = [helper.make_node("If", ["yes"], ["scores"], then_branch=branch, else_branch=branch)]
    save(path, nodes, [image()], [scores()], initializer=[condition])


def _custom_operator(path: Path) -> None:
    save(
        path,
        [helper.make_node("Evil", ["input"], ["scores"], domain="my.ops")],
        [image()],
        [scores()],
        domains=["my.ops"],
    )


def _oversized(path: Path) -> None:
    weight = TensorProto(name="w", data_type=FLOAT, dims=[1 << 20, 1 << 20], raw_data=b"1234")
    save(path, [helper.make_node("Flatten", ["input"], ["scores"])], [image()], [scores()], initializer=[weight])


def _negative_dimension(path: Path) -> None:
    weight = TensorProto(name="w", data_type=FLOAT, dims=[-1], raw_data=b"")
    save(path, [helper.make_node("Flatten", ["input"], ["scores"])], [image()], [scores()], initializer=[weight])


def _opset(number: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        save(path, [helper.make_node("Flatten", ["input"], ["scores"])], [image()], [scores("n", 192)], opset=number)

    return write


def _graph(nodes: list[Any], inputs: list[Any], outputs: list[Any]) -> Callable[[Path], Path]:
    return lambda path: save(path, nodes, inputs, outputs)


def _huge_constant(path: Path) -> None:
    """Four kilobytes that ask for 40 GB."""
    shape = numpy_helper.from_array(np.array([10_000_000_000], np.int64), "shape")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["huge"]),
        helper.make_node("ReduceMax", ["huge"], ["top"], keepdims=0),
        helper.make_node("ReduceMean", ["input"], ["pooled"], axes=[2, 3], keepdims=0),
        helper.make_node("Add", ["pooled", "top"], ["scores"]),
    ]
    save(path, nodes, [image()], [scores()], initializer=[shape])


def _bad_reshape(path: Path) -> None:
    shape = numpy_helper.from_array(np.array([1, 7], np.int64), "shape")
    nodes = [helper.make_node("Reshape", ["input", "shape"], ["scores"])]
    save(path, nodes, [image("n", 3, "h", "w")], [scores("n", 7)], initializer=[shape])


MEAN = [helper.make_node("ReduceMean", ["input"], ["scores"], axes=[2, 3], keepdims=0)]

BAD_FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "model.onnx is empty"),
    "garbage": (lambda path: path.write_bytes(b"\x89PNG not a model" * 99), "not an ONNX file, or it is cut short"),
    "truncated": (_truncated, "not an ONNX file, or it is cut short"),
    "no graph": (
        lambda path: path.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString()),
        "no graph with nodes",
    ),
    "external": (_external("weights.bin"), "weights of 'w' lie in another file ('weights.bin'); save the model as one"),
    "escaping": (_external("../../../etc/passwd"), "lie in another file ('../../../etc/passwd')"),
    "external in a branch": (_external_in_a_branch, "weights of 'k' lie in another file ('/etc/passwd')"),
    "custom operator": (_custom_operator, "uses the custom operator my.ops.Evil; only those that ONNX Runtime ships"),
    "oversized": (_oversized, "shape [1048576, 1048576], which is 4398046511104 bytes, but holds 4"),
    "negative": (_negative_dimension, "the tensor 'w' has a negative dimension: [-1]"),
    "old opset": (_opset(6), "its operator set is 6; 7 to"),
    "future opset": (_opset(999), "its operator set is 999; 7 to"),
    "checker": (
        _graph([helper.make_node("Relu", ["nowhere"], ["scores"])], [image()], [scores()]),
        "the ONNX checker refuses it: Nodes in a graph must be topologically sorted",
    ),
    "no image": (
        _graph([helper.make_node("Relu", ["input"], ["scores"])], [image("n", 10)], [scores("n", 10)]),
        "no input has four dimensions",
    ),
    "two images": (
        _graph(
            [helper.make_node("Add", ["a", "b"], ["scores"])],
            [image(name="a"), image(name="b")],
            [image(name="scores")],
        ),
        "it takes 2 inputs (a, b); a model that takes one image is read",
    ),
    "grey": (
        _graph(MEAN, [image("n", 1, 8, 8)], [scores("n", 1)]),
        "has 1 channels as NCHW; models of colour pictures",
    ),
    "other layout": (
        _graph(MEAN, [image("n", 8, 8, 3)], [scores("n", 8)]),
        "8 channels as NCHW; its shape looks like NHWC",
    ),
    "double": (
        _graph(MEAN, [image("n", 3, 8, 8, kind=TensorProto.DOUBLE)], [scores("n", 3, kind=TensorProto.DOUBLE)]),
        "input input is of type double; float (32 bits), float16 and uint8 are read",
    ),
    "too many pixels": (_graph(MEAN, [image(1, 3, 99_999, 99_999)], [scores(1, 3)]), "has more than 64 megapixels"),
    "no session": (
        lambda path: save(
            path,
            [helper.make_node("NoSuchOperator", ["input"], ["scores"], domain="com.microsoft")],
            [image()],
            [scores()],
            domains=["com.microsoft"],
        ),
        "model.onnx: ONNX Runtime cannot open it: ",
    ),
    "fails when run": (_bad_reshape, "a trial run on zeros of shape [1, 3, 64, 64] fails: "),
    "too much memory": (_huge_constant, "needs more than"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_its_own_sentence(case: str, tmp_path: Path) -> None:
    write, sentence = BAD_FILES[case]
    file = tmp_path / "model.onnx"
    write(file)
    with pytest.raises(BadModelFile) as refused:
        build_artifact(file, tmp_path / "artifact", options(size="64"))
    assert sentence in refused.value.message
    assert refused.value.message.startswith("model.onnx")
    assert "\n" not in refused.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


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
from models.intake_child import limit
limit(int(sys.argv[-2]), int(sys.argv[-1]))
try:
    open({str(tmp_path / "big")!r}, "wb").write(b"x" * (2 << 20)); wrote = True
except OSError:
    wrote = False
print(json.dumps({{"refused": json.dumps([sorted(os.environ), wrote, resource.getrlimit(resource.RLIMIT_AS)[0]])}}))
""")
    spy.chmod(0o755)
    monkeypatch.setenv("EKIBEN_S3_SECRET_KEY", "hidden")
    monkeypatch.setattr(graph_facts.sys, "executable", str(spy))
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
    monkeypatch.setattr(graph_facts.sys, "executable", str(spy))
    with pytest.raises(BadModelFile, match=r"^model.onnx: the process that read it ended with SIGSEGV"):
        read_graph(classifier(tmp_path / "model.onnx"))


def test_the_module_runs_as_a_command(tmp_path: Path) -> None:
    file = classifier(tmp_path / "model.onnx")
    arguments = [str(file), "NCHW", "0", "0", str(4 << 30), "30"]
    command = [sys.executable, "-m", "models.intake_child", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=True, env={**os.environ})
    report = json.loads(done.stdout)["facts"]
    assert report["outputs"][0]["shape"] == [1, 3]
    assert [report[key] for key in ("batch", "height", "width", "opset")] == [None, 8, 8, 17]


# --- what fits what ------------------------------------------------------------------------------------------------


def test_facts_of_a_small_classifier(tmp_path: Path) -> None:
    file = classifier(tmp_path / "model.onnx")
    facts = read_file(file, "NCHW")
    assert facts == {
        "input_name": "input",
        "dtype": "float32",
        "layout": "NCHW",
        "batch": None,
        "height": 8,
        "width": 8,
        "opset": 17,
        "precision": "float32",
    }
    output = intake_child.try_out(file, facts, None)["outputs"][0]
    # On zeros only the bias is left.
    assert output == {
        "name": "scores",
        "dtype": "float32",
        "shape": [1, 3],
        "batched": True,
        "low": 0.0,
        "high": 2.0,
        "mean": 1.0,
    }
    with pytest.raises(Refused, match="8 channels as NHWC; its shape looks like NCHW"):
        read_file(file, "NHWC")


def test_an_open_batch_that_is_baked_in_is_recorded_as_one(tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([1, 3], np.int64), "shape")
    ramp = numpy_helper.from_array(np.arange(3, dtype=np.float32), "ramp")
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["pooled"], axes=[2, 3], keepdims=0),
        helper.make_node("Reshape", ["pooled", "shape"], ["flat"]),
        helper.make_node("Add", ["flat", "ramp"], ["scores"]),
    ]
    file = save(tmp_path / "model.onnx", nodes, [image()], [scores()], initializer=[shape, ramp])
    assert build_artifact(file, tmp_path / "artifact", options()).input.batch == 1
    assert build_artifact(classifier(file), tmp_path / "other", options()).input.batch is None


def test_of_several_outputs_the_one_that_fits_is_read(tmp_path: Path) -> None:
    def two_heads(first: int, second: int) -> Path:
        weights = [numpy_helper.from_array(np.ones((3, n), np.float32), f"w{i}") for i, n in enumerate((first, second))]
        nodes = [
            helper.make_node("ReduceMean", ["input"], ["pooled"], axes=[2, 3], keepdims=0),
            helper.make_node("MatMul", ["pooled", "w0"], ["first"]),
            helper.make_node("MatMul", ["pooled", "w1"], ["second"]),
        ]
        outputs = [scores("n", first, name="first"), scores("n", second, name="second"), image(name="input_again")]
        nodes.append(helper.make_node("Identity", ["input"], ["input_again"]))
        return save(tmp_path / "model.onnx", nodes, [image()], outputs, initializer=weights)

    two_heads(5, 3)
    made = build_artifact(tmp_path / "model.onnx", tmp_path / "by_labels", options())
    assert made.output.name == "second"
    two_heads(3, 3)
    with pytest.raises(BadInput, match=r"several outputs suit classify \(first, second\); say which with output_name"):
        build_artifact(tmp_path / "model.onnx", tmp_path / "none", options())
    made = build_artifact(tmp_path / "model.onnx", tmp_path / "by_name", options(output_name="first"))
    assert made.output.name == "first"
    with pytest.raises(BadInput, match=r"no output 'third'; it has first, second, input_again"):
        build_artifact(tmp_path / "model.onnx", tmp_path / "none", options(output_name="third"))


MISFITS: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "label count": (classifier, {"labels": "a\nb"}, "labels: the graph gives 3 classes, but there are 2 labels"),
    "segment, rank 2": (
        classifier,
        {"task": "segment"},
        "no output suits segment: output scores of shape [1, 3] is not",
    ),
    "classify, rank 4": (
        lambda path: segmenter(path, 3),
        {"size": "16"},
        "no output suits classify: output scores of shape [1, 3, 16, 16] is not [batch, classes]",
    ),
    "class indices": (
        _graph(
            [MEAN[0], helper.make_node("ArgMax", ["scores"], ["best"], axis=1)],
            [image()],
            [scores("n", 1, name="best", kind=TensorProto.INT64)],
        ),
        {},
        "output best is of type int64; a score per class, in floats, is read",
    ),
    "no batch": (
        _graph(
            [helper.make_node("ReduceMean", ["input"], ["scores"], axes=[0, 2, 3], keepdims=0)], [image()], [scores(3)]
        ),
        {},
        "output scores of shape [3] has no batch axis in front",
    ),
    "not finite": (
        _graph([MEAN[0], helper.make_node("Log", ["scores"], ["logs"])], [image()], [scores(name="logs")]),
        {},
        "output logs is not a finite number everywhere in a trial run on a black picture",
    ),
    "no probabilities": (
        classifier,
        {"output": "probabilities"},
        "output: probabilities lie in 0-1, but a trial run gave 0 to 2",
    ),
    "softmax as logits": (lambda path: classifier(path, last="Softmax"), {}, "say probabilities, not logits"),
    "one channel as logits": (
        lambda path: segmenter(path, 1, shape=("n", 3, 8, 8)),
        {"task": "segment", "labels": "cell"},
        "a single channel is read as sigmoid",
    ),
    "sigmoid labels": (
        lambda path: segmenter(path, 2, shape=("n", 3, 8, 8), last="Sigmoid"),
        {"task": "segment", "labels": "a\nb\nc\nd", "output": "sigmoid"},
        "labels: the graph gives 2 classes, but there are 4 labels",
    ),
    "palette": (
        lambda path: segmenter(path, 3, shape=("n", 3, 8, 8)),
        {"task": "segment", "palette": "#000000\n#ffffff"},
        "palette: 3 classes, but 2 colours",
    ),
    "257 classes": (
        lambda path: segmenter(path, 257, shape=("n", 3, 8, 8)),
        {"task": "segment", "labels": "\n".join(map(str, range(257)))},
        "labels: a mask holds 256 classes at most; there are 257",
    ),
    "no size": (
        lambda path: classifier(path, shape=("n", 3, "h", "w")),
        {},
        "size: the graph's size is any x any; say which height and width to bring pictures to",
    ),
    "another size": (classifier, {"size": "9,8"}, "size: the graph's size is fixed at 8 x 8"),
    "shorter side, fixed": (
        lambda path: segmenter(path, 3, shape=("n", 3, 8, 8)),
        {"task": "segment", "shorter_side": "32"},
        "shorter_side: the graph's size is fixed at 8 x 8",
    ),
    "mean of uint8": (
        _graph(
            [
                helper.make_node("Cast", ["input"], ["pixels"], to=FLOAT),
                helper.make_node("ReduceMean", ["pixels"], ["scores"], axes=[2, 3], keepdims=0),
            ],
            [image("n", 3, 8, 8, kind=TensorProto.UINT8)],
            [scores()],
        ),
        {"mean": "0.5"},
        "the graph takes uint8 pixels, which are not normalised: leave out mean and std",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_refused_with_its_own_sentence(case: str, tmp_path: Path) -> None:
    write, given, sentence = MISFITS[case]
    write(tmp_path / "model.onnx")
    with pytest.raises(BadInput) as refused:
        build_artifact(tmp_path / "model.onnx", tmp_path / "artifact", options(**given))
    assert sentence in refused.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_sizes_of_dynamic_graphs(tmp_path: Path) -> None:
    file = classifier(tmp_path / "model.onnx", shape=("n", 3, "h", "w"))
    made = build_artifact(file, tmp_path / "a", options(size="16", shorter_side="20"))
    assert (made.input.height, made.input.width) == (16, 16)
    assert (made.preprocess.shorter_side, made.preprocess.center_crop) == (20, 16)
    with pytest.raises(BadInput, match="at least the side of a square input is needed; the input is 16 x 24"):
        build_artifact(file, tmp_path / "none", options(size="16,24", shorter_side="32"))
    file = segmenter(tmp_path / "model.onnx", 3)
    made = build_artifact(file, tmp_path / "b", options("segment", shorter_side="20"))
    assert (made.input.height, made.input.width, made.preprocess.shorter_side) == (None, None, 20)
    assert made.preprocess.center_crop is None


def test_a_graph_with_channels_last(tmp_path: Path) -> None:
    nodes = [helper.make_node("Identity", ["input"], ["scores"])]
    file = save(tmp_path / "model.onnx", nodes, [image("n", 8, 12, 3)], [image("n", 8, 12, 3, name="scores")])
    made = build_artifact(file, tmp_path / "artifact", options("segment", layout="NHWC", color="BGR"))
    assert (made.input.layout, made.output.layout, made.input.color) == ("NHWC", "NHWC", "BGR")
    assert (made.input.height, made.input.width) == (8, 12)


def test_the_labels_tell_the_output_layout(tmp_path: Path) -> None:
    nodes = [helper.make_node("Transpose", ["input"], ["scores"], perm=[0, 2, 3, 1])]
    file = save(tmp_path / "model.onnx", nodes, [image("n", 3, 8, 8)], [image("n", 8, 8, 3, name="scores")])
    made = build_artifact(file, tmp_path / "artifact", options("segment"))
    assert (made.input.layout, made.output.layout) == ("NCHW", "NHWC")


def test_sigmoid_channels_with_and_without_a_named_background(tmp_path: Path) -> None:
    file = segmenter(tmp_path / "model.onnx", 2, shape=("n", 3, 8, 8), last="Sigmoid")
    given = {"output": "sigmoid", "palette": "10 20 30\n40,50,60"}
    made = build_artifact(file, tmp_path / "added", options("segment", "cell\nnucleus", **given))
    assert made.labels == ("background", "cell", "nucleus")
    assert made.palette == ((0, 0, 0), (10, 20, 30), (40, 50, 60))
    made = build_artifact(file, tmp_path / "named", options("segment", "none\ncell\nnucleus", output="sigmoid"))
    assert made.labels == ("none", "cell", "nucleus")


def test_precision_is_that_of_the_weights(tmp_path: Path) -> None:
    half = numpy_helper.from_array(np.arange(3).astype(np.float16), "b")
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["pooled"], axes=[2, 3], keepdims=0),
        helper.make_node("Cast", ["pooled"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Add", ["half", "b"], ["scores"]),
    ]
    outputs = [scores("n", 3, kind=TensorProto.FLOAT16)]
    file = save(tmp_path / "model.onnx", nodes, [image()], outputs, initializer=[half])
    assert build_artifact(file, tmp_path / "artifact", options()).precision == "float16"


# --- options -------------------------------------------------------------------------------------------------------


def test_options_read_the_text_of_a_form() -> None:
    given = options("segment", "\ufeffroad\nsky\n\nprose\n", mean="0.5", std="0.1, 0.2 0.3", size="480x640", crop="")
    assert given.labels == ("road", "sky")
    assert (given.mean, given.std, given.size, given.crop) == ((0.5, 0.5, 0.5), (0.1, 0.2, 0.3), (480, 640), None)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"task": "detect"}, "task: Input should be 'classify' or 'segment'"),
        ({"labels": ""}, "labels: no labels; one per line is expected, from the first line on"),
        ({"mean": "1,2"}, "mean: one number, or one for each of the three channels, is expected"),
        ({"mean": "123.7"}, "mean is of pixels scaled to 0-1: divide one of 0-255 by 255"),
        ({"mean": "nan"}, "mean: Input should be a finite number"),
        ({"std": "0"}, "std must be positive"),
        ({"std": "58.4"}, "std is of pixels scaled to 0-1: divide one of 0-255 by 255"),
        ({"crop": "1.5"}, "crop: Input should be less than or equal to 1"),
        ({"task": "segment", "crop": "0.9"}, "crop is only for classify: a mask covers the whole picture"),
        ({"crop": "0.9", "shorter_side": "256"}, "crop and shorter_side exclude each other"),
        ({"size": "1,2,3"}, "size: one number, or height and width, is expected"),
        ({"palette": "#000000"}, "a palette is only for segment"),
        ({"task": "segment", "palette": "1 2 300"}, "palette: line 1 of the palette is neither #rrggbb nor"),
        ({"sise": "3"}, "sise: Extra inputs are not permitted"),
    ],
)
def test_wrong_options_say_which_field_is_wrong(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadInput) as refused:
        options(**given)
    assert sentence in refused.value.message


def test_label_and_palette_files(tmp_path: Path) -> None:
    assert parse_labels("a\r\n b \n\n\n") == ("a", "b")
    file = tmp_path / "labels.txt"
    for content, sentence in ((b"\n", "no labels"), (b"\xff\xfe\xfa", "it is not UTF-8 text")):
        file.write_bytes(content)
        with pytest.raises(BadInput, match=sentence):
            read_labels(file)
    with pytest.raises(BadInput, match="No such file"):
        read_labels(tmp_path / "missing.txt")
    file.write_text("#0a0b0c\n1,2,3\n4 5 6\n")
    assert read_palette(file) == ((10, 11, 12), (1, 2, 3), (4, 5, 6))
    file.write_text("red\n")
    with pytest.raises(BadInput, match="line 1 of the palette"):
        read_palette(file)


# --- the folder ----------------------------------------------------------------------------------------------------


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "a") as staging:
        (staging / "half").write_text("")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with whole_folder(tmp_path / "a") as staging:
        (staging / "file").write_text("whole")
        assert not (tmp_path / "a").exists()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o755
    with pytest.raises(Conflict, match="exists; remove it"), whole_folder(tmp_path / "a"):
        pass
    assert (tmp_path / "a" / "file").read_text() == "whole"


def test_an_upload_is_called_what_the_person_calls_it(tmp_path: Path) -> None:
    file = classifier(tmp_path / "upload.onnx")
    made = build_artifact(file, tmp_path / "artifact", options(), file_name="mine.onnx")
    assert str(made.weights) == "imported (mine.onnx)"
    file.write_bytes(b"")
    with pytest.raises(BadModelFile, match=r"^mine\.onnx is empty$"):
        build_artifact(file, tmp_path / "none", options(), file_name="mine.onnx")
