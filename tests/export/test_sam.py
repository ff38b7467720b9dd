"""Segment Anything's three graphs against the package: every kind of prompt, and what a prompt may not change."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")
if importlib.util.find_spec("segment_anything") is None:  # importing it needs more than a try
    pytest.skip("segment_anything is not installed", allow_module_level=True)

from export.recipe import images  # noqa: E402
from export.sam import artifact, random_weights, writer  # noqa: E402
from export.sam import recipe as sam_recipes  # noqa: E402
from export.sam.verify import CASES, PromptCase, Sessions, reference_answer  # noqa: E402
from export.verify import ParityError  # noqa: E402
from export.zoo import ZOO  # noqa: E402
from models.artifact import Weights, read_manifest, verify  # noqa: E402
from tests.export import sam_narrow  # noqa: E402
from tests.export.narrow_export import NarrowExport, narrow_export  # noqa: E402

ROW = ZOO["sam_vit_b"]
MIXED = CASES["mixed lengths"]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> NarrowExport:
    return narrow_export(tmp_path_factory)


@pytest.fixture(scope="module")
def recipe(narrow: NarrowExport) -> sam_recipes.SamRecipe:
    return sam_recipes.SamRecipe(ROW, narrow.network, Weights(kind="random", detail="seed 0"))


@pytest.fixture(scope="module")
def folder(recipe: sam_recipes.SamRecipe, narrow: NarrowExport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 8-bit artifact of the graphs that were exported and measured at float32 already."""
    folder = tmp_path_factory.mktemp("artifacts") / "sam"
    parity = read_manifest(narrow.artifact).parity

    def copy_graphs(network: Any, staging: Path) -> None:
        for graph in narrow.artifact.glob("*.onnx*"):
            shutil.copy(graph, staging)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact, "write_graphs", copy_graphs)
        patch.setattr(artifact, "measure_parity", lambda *given, **options: parity)
        artifact.write_artifact(recipe, folder, precision="int8")
    return folder


@pytest.fixture(scope="module")
def sessions(folder: Path) -> Sessions:
    return Sessions(folder)


@pytest.fixture(scope="module")
def features(sessions: Sessions) -> dict[str, Any]:
    pixels = np.random.default_rng(3).standard_normal((1, 3, 1024, 1024), dtype=np.float32)
    return sessions.encode(pixels)


def test_the_artifact(folder: Path) -> None:
    manifest = read_manifest(folder)
    verify(folder, manifest)
    assert sorted(manifest.files) == ["decoder.onnx", "encoder.onnx", "mask_prompt.onnx"]
    assert (manifest.family, manifest.task, manifest.architecture) == ("sam", "masks", "vit_b")
    assert (manifest.input.name, manifest.input.height, manifest.input.width) == ("pixels", 1024, 1024)
    assert (manifest.preprocess.longer_side, manifest.labels, manifest.output) == (1024, (), None)
    assert (manifest.licence, manifest.opset, str(manifest.weights)) == ("unknown", 17, "random (seed 0)")
    assert manifest.parity is not None
    assert set(manifest.parity.cases) == {"encoder, two images", "encoder, one image", *CASES}
    assert 0 < manifest.parity.onnx_max_abs == max(manifest.parity.cases.values()) < 5e-3
    assert max(manifest.parity.cases[f"encoder, {count}"] for count in ("one image", "two images")) < 1e-4


def test_int8_says_how_it_agrees_and_that_random_weights_prove_nothing(folder: Path) -> None:
    manifest = read_manifest(folder)
    assert manifest.precision == "int8"
    assert manifest.agreement is not None
    assert (manifest.agreement.reference, manifest.agreement.proven) == ("float32", False)
    assert 0 < manifest.agreement.mask_iou_min <= manifest.agreement.mask_iou_mean <= 1
    assert manifest.agreement.mask_iou_mean > 0.8
    assert manifest.agreement.inputs == "4x4 points on each of seeded image 1, seeded image 2; masks at 256x256"
    weights = {tensor.name: tensor.data_type for tensor in onnx.load(folder / "encoder.onnx").graph.initializer}
    assert sum(kind == onnx.TensorProto.INT8 for name, kind in weights.items() if name.endswith("_quantized")) >= 8


def test_the_decoder_is_the_packages_on_any_embedding(
    recipe: sam_recipes.SamRecipe, sessions: Sessions, features: dict[str, Any]
) -> None:
    network, embedding = recipe.network, torch.from_numpy(features["embedding"])
    coords = torch.tensor([[[10.0, 1000.0], [512.0, 30.5]], [[700.0, 700.0], [0.0, 0.0]]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    with torch.no_grad():
        sparse, dense = network.prompt_encoder(points=(coords, labels), boxes=None, masks=None)
        logits, iou = network.mask_decoder.predict_masks(
            image_embeddings=embedding,
            image_pe=network.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
        )
    prompts = tuple(
        PromptCase(tuple((float(x), float(y), float(label)) for (x, y), label in zip(places, kinds, strict=True)))
        for places, kinds in zip(coords, labels, strict=True)
    )
    got = sessions.decode(features, prompts)
    np.testing.assert_allclose(got["iou"], iou.numpy(), atol=1e-4)
    np.testing.assert_allclose(got["logits"], logits.numpy(), atol=2e-3)
    assert np.ptp(got["logits"]) > 5


def test_a_prompt_is_answered_beside_others_as_alone(sessions: Sessions, features: dict[str, Any]) -> None:
    together = sessions.decode(features, MIXED)
    for index, prompt in enumerate(MIXED):
        alone = sessions.decode(features, (prompt,))
        np.testing.assert_allclose(together["iou"][index], alone["iou"][0], atol=1e-5)
        np.testing.assert_allclose(together["logits"][index], alone["logits"][0], atol=1e-3)


def test_masks_are_made_for_prompts_above_the_threshold_alone(sessions: Sessions, features: dict[str, Any]) -> None:
    everything = sessions.decode(features, MIXED)
    np.testing.assert_array_equal(everything["kept"], [0, 1, 2, 3])
    best = everything["iou"][:, 1:].max(axis=1)
    assert len(set(best.tolist())) == 4
    threshold = float(np.sort(best)[1])  # of one prompt exactly: "above" is strict
    some = sessions.decode(features, MIXED, min_iou=threshold)
    np.testing.assert_array_equal(some["kept"], np.flatnonzero(best > threshold))
    np.testing.assert_allclose(some["logits"], everything["logits"][some["kept"]], atol=1e-4)
    np.testing.assert_array_equal(some["iou"], everything["iou"])


def test_no_mask_at_all(sessions: Sessions, features: dict[str, Any]) -> None:
    nothing = sessions.decode(features, MIXED, min_iou=np.inf)
    assert (nothing["iou"].shape, nothing["kept"].shape, nothing["logits"].shape) == ((4, 4), (0,), (0, 4, 256, 256))


def test_each_prompt_may_have_features_of_its_own(sessions: Sessions, features: dict[str, Any]) -> None:
    masks = sessions.decode(features, MIXED[:2])["logits"][:, 1:2]
    masked = sessions.masked(features, masks)
    rows = {name: np.concatenate([features[name], masked[name]]) for name in ("tokens", "keys", "values", "queries")}
    together = sessions.decode(rows, MIXED[:3])
    unmasked = sessions.decode(features, MIXED[:1])
    np.testing.assert_allclose(together["logits"][0], unmasked["logits"][0], atol=1e-3)
    second = {name: values[1:2] for name, values in masked.items()}
    np.testing.assert_allclose(together["logits"][2], sessions.decode(second, MIXED[2:3])["logits"][0], atol=1e-3)
    assert np.abs(together["iou"][2] - sessions.decode(features, MIXED[2:3])["iou"][0]).max() > 1e-3


def test_random_weights_are_those_of_their_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sam_recipes.BUILDERS, "vit_b", sam_narrow.build)
    monkeypatch.setattr(random_weights, "_GRID", 2)
    torch.manual_seed(0)
    network = sam_narrow.build()
    random_weights.calibrate(network)
    again, fresh = sam_recipes.random_sam("vit_b", 0).state_dict(), network.state_dict()
    assert all(torch.equal(values, again[name]) for name, values in fresh.items())
    torch.manual_seed(1)
    other = sam_narrow.build().state_dict()
    assert not torch.equal(other["mask_decoder.iou_token.weight"], again["mask_decoder.iou_token.weight"])


def test_random_weights_answer_as_trained_ones_do_in_kind(narrow: NarrowExport) -> None:
    with torch.inference_mode():
        embedding = narrow.calibrated.image_encoder(images(1, 1024, 1024, seed=11))
    points = [PromptCase(((x, y, 1.0),)) for x in (100.0, 500.0, 900.0) for y in (300.0, 800.0)]
    answers = [reference_answer(narrow.calibrated, embedding, prompt, torch.empty(0)) for prompt in points]
    iou, logits = (torch.cat(parts)[:, 1:] for parts in zip(*answers, strict=True))
    assert 0.2 <= (iou > 0.88).float().mean() <= 0.8
    inner, outer = ((logits > offset).sum(dim=(2, 3)) for offset in (1.0, -1.0))
    assert 0.2 <= (inner / outer >= 0.95).float().mean() <= 0.8
    assert logits.min() < -8
    assert logits.max() > 8
    share = (logits > 0).float().mean(dim=(2, 3))
    assert 0.005 < share.median() < 0.5


def test_a_wrong_graph_is_refused_and_no_folder_left(
    recipe: sam_recipes.SamRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bent(network: Any, folder: Path) -> None:
        writer.write_graphs(network, folder)
        model = onnx.load(folder / "decoder.onnx")
        [bias] = [each for each in model.graph.initializer if each.name.endswith("iou_head.layers.2.bias")]
        values = onnx.numpy_helper.to_array(bias) + np.float32(0.01)
        bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
        onnx.save(model, folder / "decoder.onnx")

    monkeypatch.setattr(artifact, "write_graphs", bent)
    with pytest.raises(ParityError, match=r"^one point: the graphs differ from torch by 0\.01; at most 0\.001 is"):
        artifact.write_artifact(recipe, tmp_path / "artifact")
    assert list(tmp_path.iterdir()) == []


def test_a_large_graph_has_its_numbers_beside_it(recipe: sam_recipes.SamRecipe, tmp_path: Path) -> None:
    file = tmp_path / "encoder.onnx"
    writer.write_encoder(recipe.network, file, one_file_bytes=100_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encoder.onnx", "encoder.onnx.data"]
    assert file.stat().st_size < 200_000 < (tmp_path / "encoder.onnx.data").stat().st_size
    onnx.checker.check_model(str(file))
    pixels = images(1, 1024, 1024, seed=2)
    with torch.inference_mode():
        expected = recipe.network.image_encoder(pixels).numpy()
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["embedding"], {"pixels": pixels.numpy()})[0], expected, atol=1e-4)
