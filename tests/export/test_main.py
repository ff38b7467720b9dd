"""``python -m export``: what is published, printed and refused, with which exit status."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from db.registry import Registry
from db.session import connect
from ekiben.settings import Settings
from export import zoo
from export.__main__ import main
from models.artifact import read_manifest, sha256_of, verify


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("DATABASE_URL", "STORE_URL"):
        monkeypatch.delenv(f"EKIBEN_{name}", raising=False)
    monkeypatch.setenv("EKIBEN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A classifier of three classes, and its labels beside it."""
    weight = numpy_helper.from_array(np.eye(3, dtype=np.float32), "w")
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["pooled"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["pooled", "w"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        initializer=[weight],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "mine.onnx"
    )
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    return tmp_path / "mine.onnx"


def registry() -> Registry:
    return Registry(connect(Settings.from_environ().resolved_database_url))


def importing(model: Path, *more: str) -> list[str]:
    return ["import", str(model), "--task", "classify", "--labels", str(model.parent / "labels.txt"), *more]


def test_an_import_is_published_and_a_second_one_is_version_2(
    home: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(importing(model, "--name", "colours", "--mean", "0.1", "0.2", "0.3", "--std", "0.5,0.25,0.125")) == 0
    out, err = capsys.readouterr()
    folder = home / "blobs" / "models" / "colours" / "1"
    assert (out, err) == (
        f"colours version 1; parity: not measured; weights: imported (mine.onnx); folder: {folder}\n",
        "",
    )
    manifest = read_manifest(folder)
    verify(folder, manifest)
    assert (manifest.preprocess.mean, manifest.preprocess.std) == ((0.1, 0.2, 0.3), (0.5, 0.25, 0.125))
    row = registry().resolve("colours")
    assert (row.version, row.task, row.family, row.digest) == (1, "classify", "classifier", manifest.digest)
    assert row.manifest["labels"] == ["red", "green", "blue"]
    assert row.lineage["weights"]["sha256"] == sha256_of(model)
    assert main(importing(model, "--name", "colours")) == 0
    assert registry().resolve("colours").version == 2


def test_out_writes_a_folder_and_publishes_nothing(
    home: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(importing(model, "--out", str(tmp_path / "artifact"))) == 0
    assert capsys.readouterr().out.startswith("artifact not published; parity: not measured; ")
    verify(tmp_path / "artifact", read_manifest(tmp_path / "artifact"))
    assert not home.exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([], "--name is missing"),
        (["--name", "No Name"], "a model's name is 1 to 63 of a-z, 0-9, - and _"),
        (["--name", "colours", "--mean", "1", "2"], "mean: one number, or one for each of the three channels"),
        (["--name", "colours", "--task", "segment"], "no output suits segment"),
        (["--name", "colours", "--labels", "nowhere.txt"], "nowhere.txt cannot be read: No such file or directory"),
        (["--name", "colours", "--palette", "nowhere.txt"], "nowhere.txt cannot be read: No such file or directory"),
    ],
)
def test_a_refusal_is_one_line_and_status_1(
    home: Path, model: Path, capsys: pytest.CaptureFixture[str], more: list[str], sentence: str
) -> None:
    assert main(importing(model, *more)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("export: ")
    assert err.count("\n") == 1
    assert sentence in err
    if home.exists():
        assert registry().models() == []
        assert not list(home.glob("blobs/models/*"))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["resnet1202"],
        ["fetch", "resnet1202"],
        ["import", "model.onnx"],
        ["efficientnet_b0", "--weights", "some"],
        ["efficientnet_b0", "--seed", "1"],
        ["efficientnet_b0", "--precision", "int8"],
        ["sam_vit_b", "--labels", "labels.txt"],
        ["sam_vit_b", "--precision", "int4"],
        ["efficientnet_b0", "--weights", "random", "--checkpoint", "x.pth"],
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: python -m export" in capsys.readouterr().err


def test_help_and_list(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["import", "--help"], ["efficientnet_b0", "--help"], ["sam_vit_b", "--help"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 0
    assert "exit status: 0 done, 1 refused" in capsys.readouterr().out
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[:3] for line in lines] == [
        ["efficientnet_b0", "classify", "1000 classes"],
        ["deeplabv3_resnet50", "segment", "21 classes"],
        ["sam_vit_b", "masks", "any object"],
        ["sam_vit_l", "masks", "any object"],
        ["sam_vit_h", "masks", "any object"],
    ]


@pytest.mark.parametrize("arguments", [["fetch", "efficientnet_b0"], ["efficientnet_b0"]])
def test_weights_that_cannot_be_had_are_status_3_and_listed(
    home: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] != "fetch":
        pytest.importorskip("torch")
    row = replace(zoo.ZOO["efficientnet_b0"], url="http://127.0.0.1:9/efficientnet_b0-7f5810bc.pth")
    monkeypatch.setitem(zoo.ZOO, "efficientnet_b0", row)
    assert main(arguments) == 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"put the file by hand at {home / 'downloads' / row.file} (its SHA-256 begins with 7f5810bc)" in err
    [listed] = registry().models()
    assert (listed.model.name, listed.model.task, listed.active) == ("efficientnet_b0", "classify", None)
    assert listed.model.unavailable_reason == err.removeprefix("export: ").rstrip("\n")


def test_published_weights_are_fetched_exported_and_published(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    from export import recipe
    from export.torchvision_ops import declare_missing

    declare_missing()
    from torchvision.models import efficientnet_b0

    served = tmp_path / "served"
    served.mkdir()
    state = recipe.random(zoo.ZOO["efficientnet_b0"], 4).network.state_dict()
    torch.save(state, served / "weights.pth")
    digest = sha256_of(served / "weights.pth")
    handler = partial(SimpleHTTPRequestHandler, directory=str(served))
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *arguments: None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/weights.pth"
    row = replace(zoo.ZOO["efficientnet_b0"], url=url, sha256_prefix=digest[:8])
    monkeypatch.setitem(zoo.ZOO, "efficientnet_b0", row)
    try:
        assert main(["efficientnet_b0"]) == 0
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    out, err = capsys.readouterr()
    folder = home / "blobs" / "models" / "efficientnet_b0" / "1"
    assert out.startswith("efficientnet_b0 version 1; parity: onnx ")
    assert out.endswith(f"; weights: published (weights.pth); folder: {folder}\n")
    assert "efficientnet_b0: 100 %" in err
    manifest = read_manifest(folder)
    verify(folder, manifest)
    assert (manifest.weights.kind, manifest.weights.sha256) == ("published", digest)
    assert (manifest.metrics["imagenet1k_top1"], manifest.licence, manifest.source) == (77.692, row.licence, row.source)
    # The whole way against torchvision's own network.
    import onnxruntime as ort

    reference = efficientnet_b0(weights=None)
    reference.load_state_dict(state)
    pixels = recipe.images(2, 224, 224, seed=9)
    with torch.inference_mode():
        expected = reference.eval()(pixels).numpy()
    session = ort.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"input": pixels.numpy()})[0], expected, atol=1e-4)
    # The server is gone; the file is there.
    assert main(["fetch", "efficientnet_b0"]) == 0
    assert capsys.readouterr().out == f"{home / 'downloads' / 'weights.pth'}\n"


def test_a_checkpoint_of_ones_own_is_published_under_its_own_name(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    from export import recipe

    trained = recipe.random(zoo.ZOO["efficientnet_b0"], 6, ("cat", "dog"))
    torch.save({"model": trained.network.state_dict()}, tmp_path / "mine.pth")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    arguments = ["efficientnet_b0", "--checkpoint", str(tmp_path / "mine.pth"), "--name", "pets"]
    assert main(arguments) == 1
    assert "the weights have 2 classes, but there are 1000 labels; give --labels with 2" in capsys.readouterr().err
    assert main([*arguments, "--labels", str(tmp_path / "labels.txt")]) == 0
    manifest = read_manifest(home / "blobs" / "models" / "pets" / "1")
    assert (manifest.labels, str(manifest.weights)) == (("cat", "dog"), "checkpoint (mine.pth)")
    assert (manifest.licence, manifest.metrics) == ("unknown", {})


def test_a_sam_is_published_under_the_name_of_its_precision(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from export.sam import artifact, recipe
    from models.artifact import Manifest, Weights, write_manifest

    def random(row: zoo.ZooRow, seed: int) -> recipe.SamRecipe:
        return recipe.SamRecipe(row, None, Weights(kind="random", detail=f"seed {seed}"))

    def write(recipe: recipe.SamRecipe, folder: Path, *, precision: str, photos: Path | None) -> Manifest:
        folder.mkdir()
        (folder / "encoder.onnx").write_bytes(f"{precision} {photos}".encode())
        row = recipe.row
        manifest = Manifest(
            family=row.family,
            task=row.task,
            input={"name": "pixels"},
            preprocess=row.preprocess,
            weights=recipe.weights,
            opset=17,
        )
        return write_manifest(folder, manifest)

    monkeypatch.setattr(recipe, "random", random)
    monkeypatch.setattr(artifact, "write_artifact", write)
    assert main(["sam_vit_b", "--weights", "random", "--seed", "3"]) == 0
    assert capsys.readouterr().out.startswith("sam_vit_b version 1; ")
    assert main(["sam_vit_b", "--weights", "random", "--precision", "int8", "--agreement-photos", str(home)]) == 0
    assert capsys.readouterr().out.startswith("sam_vit_b_int8 version 1; ")
    assert registry().resolve("sam_vit_b_int8").task == "masks"
    assert str(registry().resolve("sam_vit_b").lineage["weights"]["detail"]) == "seed 3"
    assert main(["sam_vit_b", "--weights", "random", "--agreement-photos", str(home / "none")]) == 1
    assert capsys.readouterr().err == f"export: {home / 'none'} is no folder of images\n"
