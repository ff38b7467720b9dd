"""The unet family on toys whose logits are known, and against MONAI where torch is installed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import BadModelFile
from models.artifact import Manifest, Preprocess, Tiling
from models.engine.engine import ModelKey
from models.engine.loader import LoadedNetwork, load_artifact
from models.engine.session_options import SessionOptions
from models.images import DecodedImage
from models.inference_requests import PROBABILITY, RENDERS, InferenceRequest
from models.sliding_window import Tile
from models.unet import PredictionMap, TiledImage, Unet
from tests import toy_models

SIZES = [(32, 32), (100, 70), (70, 101), (20, 50), (7, 3)]


def open_toy(folder: Path, **how: Any) -> tuple[Unet, LoadedNetwork]:
    manifest = toy_models.unet(folder, **how)
    return Unet(manifest), load_artifact(ModelKey("local", "toy", 1), folder, SessionOptions(device="cpu"))


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> tuple[Unet, LoadedNetwork]:
    """Tiled, one channel, threshold 0.7."""
    return open_toy(tmp_path_factory.mktemp("cells"), binary=True, overlap=0.5, threshold=0.7)


@pytest.fixture(scope="module")
def areas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Unet, LoadedNetwork]:
    return open_toy(tmp_path_factory.mktemp("areas"), overlap=0.25)


def pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    return np.asarray(image)


def position(batch: NDArray[Any]) -> NDArray[np.float32]:
    """A network that sees where in its window a pixel lies, so that flips and blending matter."""
    ramp = np.linspace(-2, 2, batch.shape[-1], dtype=np.float32)
    return np.asarray((batch[:, :1] + ramp[:, None] + 3 * ramp * batch[:, 1:2]), np.float32)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(("flips", "batch"), [(False, 1), (False, 5), (True, 3)])
def test_the_logits_of_an_image_at_its_own_size(
    cells: tuple[Unet, LoadedNetwork], size: tuple[int, int], flips: bool, batch: int
) -> None:
    unet, loaded = cells
    photo = toy_models.noise(*size)
    sizes = []

    def run(tensors: NDArray[Any]) -> NDArray[Any]:
        sizes.append(len(tensors))
        return loaded.run(tensors)

    logits = unet.predict(photo, run, flips=flips, batch=batch)
    expected = toy_models.cell_logits(pixels_of(photo))
    assert logits.shape == (1, *expected.shape) and logits.dtype == np.float32
    assert np.abs(logits[0] - expected).max() < 1e-4
    assert np.array_equal(unet.class_map(logits), expected >= np.log(0.7 / 0.3))
    assert np.abs(unet.probabilities(logits)[0] - 1 / (1 + np.exp(-expected))).max() < 1e-5
    # No window is run twice, and batches are full.
    assert sum(sizes) == len(unet.tiles(*expected.shape)) * (4 if flips else 1)
    assert set(sizes[:-1]) <= {batch}


def test_cut_normalises_as_the_manifest_says(tmp_path: Path) -> None:
    steps = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    unet = Unet(toy_models.unet(tmp_path, binary=True, overlap=0.5, preprocess=steps))
    pixels = pixels_of(toy_models.noise(60, 50))
    given = unet.cut(pixels, Tile(10, 20))
    expected = (pixels[10:42, 20:52] / 255.0 - np.array(steps.mean)) / np.array(steps.std)
    assert given.shape == (3, 32, 32) and given.dtype == np.float32
    assert given.flags.c_contiguous
    assert np.abs(given - expected.transpose(2, 0, 1)).max() < 1e-5


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("size", [(32, 32), (100, 70), (70, 101), (25, 50)], ids=str)
def test_as_monai_does(tmp_path: Path, size: tuple[int, int], flips: bool) -> None:
    torch = pytest.importorskip("torch")
    inferers = pytest.importorskip("monai.inferers")
    unet = Unet(toy_models.unet(tmp_path, binary=True, overlap=0.5))
    photo = toy_models.noise(*size)

    def network(batch: Any) -> Any:
        if not flips:
            return torch.from_numpy(position(batch.numpy()))
        turned = [
            torch.flip(torch.from_numpy(position(torch.flip(batch, dims).numpy())), dims)
            for dims in ([], [3], [2], [2, 3])
        ]
        return torch.stack(turned).mean(dim=0)

    tensor = torch.from_numpy(np.transpose(pixels_of(photo), (2, 0, 1)).astype(np.float32) / 255)[None]
    expected = inferers.sliding_window_inference(
        tensor, 32, 2, network, overlap=0.5, mode="gaussian", sigma_scale=0.125, padding_mode="reflect"
    )
    assert np.abs(unet.predict(photo, position, flips=flips, batch=3) - expected[0].numpy()).max() <= 1e-4


def test_several_classes(areas: tuple[Unet, LoadedNetwork]) -> None:
    unet, loaded = areas
    photo = toy_models.noise(75, 50)
    logits = unet.predict(photo, loaded.run)
    levels = pixels_of(photo).astype(np.float64).transpose(2, 0, 1) / 255 * toy_models.STEEPNESS
    expected = np.concatenate([np.full((1, 50, 75), toy_models.STEEPNESS / 2), levels])
    assert np.abs(logits - expected).max() < 1e-4
    assert np.array_equal(unet.class_map(logits), logits.argmax(axis=0))
    powers = np.exp(expected)
    assert np.abs(unet.probabilities(logits) - powers / powers.sum(axis=0)).max() < 1e-5
    assert unet.probabilities(logits).dtype == np.float32


def test_equal_logits_are_the_lower_class(areas: tuple[Unet, LoadedNetwork]) -> None:
    assert areas[0].class_map(np.zeros((4, 2, 3), np.float32)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_probabilities_of_large_logits(cells: tuple[Unet, LoadedNetwork], areas: tuple[Unet, LoadedNetwork]) -> None:
    with np.errstate(all="raise", under="ignore"):
        given = cells[0].probabilities(np.array([[[-1000.0, -1, 0, 1, 1000]]], np.float32))
        assert given[0, 0].tolist() == pytest.approx([0, 0.268941, 0.5, 0.731059, 1], abs=1e-6)
        many = areas[0].probabilities(np.array([1e4, 0, -1e4, 1e4], np.float32).reshape(4, 1, 1))
        assert many[:, 0, 0].tolist() == [0.5, 0, 0, 0.5]


def test_the_threshold_itself_is_class_1(tmp_path: Path) -> None:
    unet = Unet(toy_models.unet(tmp_path, binary=True, threshold=0.5))
    assert unet.class_map(np.array([[[-1e-6, 0, 1e-6]]], np.float32)).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize("flips", [False, True])
def test_outputs_may_come_in_any_order(cells: tuple[Unet, LoadedNetwork], flips: bool) -> None:
    unet = cells[0]
    photo = toy_models.noise(70, 100)

    def read(order: list[int]) -> NDArray[np.float32]:
        out = np.zeros((1, 100, 70), np.float32)
        tiled_image = TiledImage(
            unet, photo, lambda rows, columns, part: out.__setitem__((..., rows, columns), part), flips=flips
        )
        assert tiled_image.pieces == len(order)
        for number in order:
            tiled_image.add(number, position(tiled_image.tensor(number)[None])[0])
        return out

    pieces = len(unet.tiles(100, 70)) * (4 if flips else 1)
    in_order = list(range(pieces))
    shuffled = np.random.default_rng(5).permutation(pieces).tolist()
    assert np.array_equal(read(in_order), read(shuffled))


def test_untiled_is_resized_and_enlarged(tmp_path: Path) -> None:
    unet, loaded = open_toy(tmp_path, binary=True)
    photo = toy_models.noise(90, 61)
    small = np.asarray(photo.resize((32, 32), Image.Resampling.BILINEAR))
    scores = toy_models.cell_logits(small).astype(np.float32)
    expected = np.asarray(Image.fromarray(scores).resize((90, 61), Image.Resampling.BILINEAR))
    logits = unet.predict(photo, loaded.run)
    assert np.abs(logits[0] - expected).max() < 1e-4
    assert np.abs(unet.predict(photo, loaded.run, flips=True)[0] - expected).max() < 1e-4
    request = InferenceRequest(b"", renders=("mask", PROBABILITY))
    answer = unet.postprocess(
        loaded.run(unet.preprocess(DecodedImage(photo, "image/png"))[None])[0],
        DecodedImage(photo, "image/png"),
        request,
    )
    mask = np.asarray(Image.open(io.BytesIO(answer.renders["mask"])))
    assert np.array_equal(mask, unet.class_map(logits))
    assert {area.class_name: area.pixels for area in answer.areas} == {
        "cell": int(mask.sum()),
        "background": int((mask == 0).sum()),
    }


def test_the_probability_is_a_16_bit_image(cells: tuple[Unet, LoadedNetwork]) -> None:
    unet, loaded = cells
    image = toy_models.noise(50, 70)
    prediction_map = PredictionMap(unet, 70, 50, probability=True)
    tiled_image = TiledImage(unet, image, prediction_map.paint, flips=False)
    for number in range(tiled_image.pieces):
        tiled_image.add(number, loaded.run(tiled_image.tensor(number)[None])[0])
    checks: list[int] = []
    answer = unet.answer(
        prediction_map,
        DecodedImage(image, "image/png"),
        InferenceRequest(b"", renders=(*RENDERS, PROBABILITY)),
        lambda: checks.append(1),
    )
    assert len(checks) == 4
    assert tuple(answer.renders) == (*RENDERS, PROBABILITY)
    photo = Image.open(io.BytesIO(answer.renders[PROBABILITY]))
    assert (photo.size, photo.mode) == ((50, 70), "I;16")
    levels = np.asarray(photo).astype(np.float64) / 65535
    expected = 1 / (1 + np.exp(-toy_models.cell_logits(pixels_of(image))))
    assert np.abs(levels - expected).max() < 2e-5
    mask = np.asarray(Image.open(io.BytesIO(answer.renders["mask"])))
    sure = np.abs(expected - 0.7) > 1e-4
    assert np.array_equal((levels >= 0.7)[sure], (mask == 1)[sure])


def test_a_tiled_image_has_no_single_input(cells: tuple[Unet, LoadedNetwork]) -> None:
    with pytest.raises(ValueError, match="tiles"):
        cells[0].preprocess(DecodedImage(toy_models.noise(64, 64), "image/png"))


def test_a_graph_that_gives_something_else(cells: tuple[Unet, LoadedNetwork]) -> None:
    tiled_image = TiledImage(cells[0], toy_models.noise(32, 32), lambda *_: None, flips=False)
    with pytest.raises(BadModelFile, match=r"\[2, 32, 32\].*\[1, 32, 32\]"):
        tiled_image.add(0, np.zeros((2, 32, 32), np.float32))


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("input", {"height": None, "width": None}, "fixed size"),
        ("input", {"width": 64}, "squares"),
        ("output", {"activation": "sigmoid"}, "logits"),
        ("output", {"layout": "NHWC"}, "NCHW"),
    ],
)
def test_manifests_that_are_no_unet_s(tmp_path: Path, part: str, change: dict[str, Any], said: str) -> None:
    manifest = toy_models.unet(tmp_path)
    changed = Manifest.model_validate({**manifest.model_dump(), part: {**manifest.model_dump()[part], **change}})
    with pytest.raises(BadModelFile, match=said):
        Unet(changed)


def test_windows_of_the_manifest_s_overlap(tmp_path: Path) -> None:
    manifest = toy_models.unet(tmp_path, overlap=0.5)
    assert Unet(manifest).tiles(64, 32) == (Tile(0, 0), Tile(16, 0), Tile(32, 0))
    apart = manifest.model_copy(update={"tiling": Tiling(overlap=0)})
    assert Unet(apart).tiles(64, 32) == (Tile(0, 0), Tile(32, 0))
    assert Unet(manifest.model_copy(update={"tiling": None})).tiles(640, 320) == (Tile(0, 0),)
