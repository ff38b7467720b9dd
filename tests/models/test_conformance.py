"""What every family keeps, checked with a toy network for each row of the catalog, in every layout and type."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from models.artifact import ONNX, Manifest, write_manifest
from models.catalog import FAMILIES
from models.engine.engine import ModelKey
from models.engine.loader import LoadedNetwork, load_artifact
from models.engine.session_options import SessionOptions
from models.family import Family
from models.images import DecodedImage
from models.inference_requests import RENDERS, InferenceRequest, InferenceResponse
from tests import toy_models

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SIZES = [(32, 32), (50, 40), (40, 61), (1, 1), (9, 130)]

VARIANTS: list[dict[str, Any]] = [
    {"layout": layout, "dtype": dtype, "activation": activation}
    for layout, dtype, activation in itertools.product(
        ["NCHW", "NHWC"], ["float32", "float16", "uint8"], ["logits", "sigmoid", "probabilities"]
    )
] + [{"batch": 3}, {"batch": 1}]

UNET_VARIANTS: list[dict[str, Any]] = [{"dtype": "float32"}, {"dtype": "float16"}, {"dtype": "uint8"}, {"batch": 3}]
"""A unet gives logits in one layout: its own graphs come from training alone."""

BUILT = {name: row.build for name, row in FAMILIES.items() if row.build is not None}
"""The families of one graph."""

ROWS = [(name, variant) for name in BUILT for variant in (UNET_VARIANTS if name == "unet" else VARIANTS)]


@dataclass
class Toy:
    manifest: Manifest
    family: Family
    loaded: LoadedNetwork

    def answer(self, image: DecodedImage, request: InferenceRequest) -> InferenceResponse:
        return self.answers([image], request)[0]

    def answers(self, images: list[DecodedImage], request: InferenceRequest) -> list[InferenceResponse]:
        outputs = self.loaded.run(np.stack([self.family.preprocess(image) for image in images]))
        assert len(outputs) == len(images)
        return [self.family.postprocess(o, p, request) for o, p in zip(outputs, images, strict=True)]

    @property
    def renders(self) -> tuple[str, ...]:
        return RENDERS if self.manifest.task == "segment" else ()


def _id(row: tuple[str, dict[str, Any]]) -> str:
    return "-".join(str(value) for value in (row[0], *row[1].values()))


@pytest.fixture(scope="module", params=ROWS, ids=_id)
def toy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Toy]:
    name, variant = request.param
    folder: Path = tmp_path_factory.mktemp("toy")
    manifest = toy_models.TOYS[name](folder, **variant)
    loaded = load_artifact(ModelKey("local", name, 1), folder, SessionOptions(device="cpu"))
    yield Toy(manifest, BUILT[name](manifest), loaded)
    loaded.session.close()


def renamed(folder: Path, manifest: Manifest, name: str) -> Manifest:
    """The artifact with another name for the output of its graph."""
    model = onnx.load(folder / ONNX)
    (output,) = model.graph.output
    (last,) = (node for node in model.graph.node if node.output[0] == output.name)
    output.name = last.output[0] = name
    onnx.save(model, folder / ONNX)
    changed = manifest.only_output.model_copy(update={"name": name})
    return write_manifest(folder, manifest.model_copy(update={"output": changed, "files": {}}))


def image(color: tuple[int, int, int], width: int = 32, height: int = 32) -> DecodedImage:
    return DecodedImage(toy_models.solid(color, width, height), "image/png")


def noise(width: int, height: int, seed: int = 0) -> DecodedImage:
    return DecodedImage(toy_models.noise(width, height, seed), "image/png")


def best(answer: InferenceResponse) -> str:
    return answer.scores[0].class_name if answer.scores else answer.areas[0].class_name


def test_every_row_of_the_catalog_has_a_toy() -> None:
    assert set(toy_models.TOYS) == set(BUILT)


def test_preprocess_gives_the_graph_s_input(toy: Toy) -> None:
    for width, height in SIZES:
        given = noise(width, height)
        before = given.rgb.tobytes()
        tensor = toy.family.preprocess(given)
        shape = (3, 32, 32) if toy.manifest.input.layout == "NCHW" else (32, 32, 3)
        assert (tensor.shape, tensor.dtype) == (shape, np.dtype(toy.manifest.input.dtype))
        assert tensor.flags.c_contiguous
        assert np.array_equal(tensor, toy.family.preprocess(given))
        assert given.rgb.tobytes() == before


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_right_answer_comes_out(toy: Toy, size: tuple[int, int]) -> None:
    for name, color in COLORS.items():
        assert best(toy.answer(image(color, *size), InferenceRequest(b"", top_k=1))) == name


def test_a_batch_answers_each_as_alone(toy: Toy) -> None:
    images = [image(COLORS["blue"]), noise(50, 40), image(COLORS["red"], 7, 90)][: toy.manifest.input.batch]
    request = InferenceRequest(b"", top_k=2, renders=toy.renders)
    together, alone = toy.answers(images, request), [toy.answer(one, request) for one in images]
    for one, other in zip(together, alone, strict=True):
        assert (one.image, one.areas, dict(one.renders)) == (other.image, other.areas, dict(other.renders))
        assert [s.class_index for s in one.scores] == [s.class_index for s in other.scores]
        confidences = [s.confidence for s in other.scores]
        assert [s.confidence for s in one.scores] == pytest.approx(confidences, abs=1e-5)


def test_answers_are_well_formed(toy: Toy) -> None:
    for width, height in SIZES:
        given = noise(width, height, seed=3)
        answer = toy.answer(given, InferenceRequest(b"", top_k=4, renders=toy.renders))
        assert answer.image == given.info
        # A classification or a segmentation, never both.
        assert bool(answer.scores) is (toy.manifest.task == "classify")
        assert bool(answer.areas) is (toy.manifest.task == "segment")
        labels = toy.manifest.labels
        for score in answer.scores:
            assert score.class_name == labels[score.class_index] and 0 <= score.confidence <= 1
        confidences = [score.confidence for score in answer.scores]
        assert confidences == sorted(confidences, reverse=True)
        if answer.scores and toy.manifest.only_output.activation != "sigmoid":
            assert sum(confidences) == pytest.approx(1, abs=1e-4)
        for area in answer.areas:
            assert area.class_name == labels[area.class_index]
            assert area.color == toy.manifest.palette[area.class_index]
        if answer.areas:
            assert sum(area.pixels for area in answer.areas) == width * height
        assert tuple(answer.renders) == toy.renders
        for data in answer.renders.values():
            assert Image.open(io.BytesIO(data)).size == (width, height)


def test_nothing_is_remembered_between_images(toy: Toy) -> None:
    request = InferenceRequest(b"", top_k=1, renders=toy.renders)
    first = toy.answer(noise(40, 30), request)
    toy.answer(image(COLORS["green"], 5, 5), request)
    assert toy.answer(noise(40, 30), request) == first


def test_tensors_have_names_of_their_own_and_are_given(toy: Toy) -> None:
    known = toy.family.tensors
    assert len({info.name for info in known}) == len(known) > 0
    given = noise(50, 40)
    answer = toy.answer(given, InferenceRequest(b"", top_k=1, tensors=tuple(info.name for info in known)))
    for info in known:
        tensor = answer.tensors[info.name]
        assert tensor.dtype == np.dtype(info.dtype), info.name
        assert tensor.ndim == len(info.shape), info.name
        assert all(want in (-1, has) for want, has in zip(info.shape, tensor.shape, strict=True)), info.name
    if toy.manifest.task == "segment":
        assert answer.tensors["class_map"].shape == (40, 50)


@pytest.mark.parametrize("name", ["class_map", "probs", "probability"])
@pytest.mark.parametrize("family", BUILT)
def test_a_graph_whose_output_is_called_as_ours_is(family: str, name: str, tmp_path: Path) -> None:
    """Under that name the family's own tensor is given, as for any other graph."""
    manifest = toy_models.TOYS[family](tmp_path)
    ours = "probs" if manifest.task == "classify" else "class_map"
    outputs = []
    for written in (manifest, renamed(tmp_path, manifest, name)):
        loaded = load_artifact(ModelKey("local", family, 1), tmp_path, SessionOptions(device="cpu"))
        toy = Toy(written, BUILT[family](written), loaded)
        outputs.append(toy.answer(noise(50, 40), InferenceRequest(b"", top_k=1, tensors=(ours,))).tensors[ours])
        loaded.close()
    assert written.only_output.name == name
    names = [info.name for info in toy.family.tensors]
    assert ours in names and len(set(names)) == len(names)
    assert outputs[0].dtype == outputs[1].dtype and np.array_equal(outputs[0], outputs[1])
    assert len(np.unique(outputs[0])) == len(toy_models.CLASSES)  # all occur, or all have confidences of their own
