"""From images to tensors, against torchvision, torch's own interpolation and plain float64 arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import TooLarge
from models.artifact import GraphInput, GraphOutput, Manifest, Preprocess, Weights
from models.preprocess import MAX_ASPECT, Preprocessor
from tests.toy_models import noise, solid

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
EFFICIENTNET = Preprocess(shorter_side=256, center_crop=224, interpolation="bicubic", **IMAGENET)
SIZES = [(256, 256), (500, 375), (375, 500), (224, 224), (100, 80), (257, 255), (33, 900), (900, 33), (1, 300), (1, 1)]
SIZES += [(1537, 1023), (1023, 1537), (640, 427), (427, 641), (333, 500), (257, 2000)]


def preprocessor(steps: Preprocess, side: int | tuple[int, int] | None = 224, **graph: Any) -> Preprocessor:
    height, width = side if isinstance(side, tuple) else (side, side)
    return Preprocessor(
        Manifest(
            family="classifier",
            task="classify",
            input=GraphInput(name="input", height=height, width=width, **graph),
            output=GraphOutput(name="output"),
            preprocess=steps,
            labels=("one",),
            weights=Weights(kind="random"),
            opset=17,
        )
    )


def photo(width: int, height: int) -> Image.Image:
    """Grain on a slope: neither flat, where everything agrees, nor pure noise."""
    slope = np.linspace(0, 160, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    grain = np.random.default_rng(width * height).integers(0, 36, (height, width, 3))
    return Image.fromarray((slope + grain).astype(np.uint8))


def normalised(pixels: NDArray[np.uint8], steps: Preprocess) -> NDArray[np.float64]:
    """float64 [3, H, W]"""
    scaled = (pixels.astype(np.float64) / 255.0 - np.array(steps.mean)) / np.array(steps.std)
    return scaled.transpose(2, 0, 1)


def almost_equal(ours: Image.Image, theirs: Image.Image, share: float = 0.001) -> None:
    """At most one grey level apart, on at most ``share`` of the values.

    Both are Pillow's resize. Ours starts at a fraction of a pixel, which Pillow keeps in 32 bits, theirs at 0 and crops
    afterwards: the filter's weights differ in their last bits, and a value between two levels may fall to either side.
    """
    difference = np.abs(np.asarray(ours).astype(int) - np.asarray(theirs).astype(int))
    assert difference.shape == np.asarray(theirs).shape
    assert difference.max(initial=0) <= 1
    assert np.count_nonzero(difference) <= share * difference.size


@pytest.fixture(scope="module")
def transforms() -> Any:
    pytest.importorskip("torch")
    from export.torchvision_ops import declare_missing

    declare_missing()
    return pytest.importorskip("torchvision.transforms")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_resize_and_center_crop_are_torchvision_s(size: tuple[int, int], transforms: Any) -> None:
    mode = transforms.InterpolationMode.BICUBIC
    theirs = transforms.Compose([transforms.Resize(256, mode, antialias=True), transforms.CenterCrop(224)])
    image, ours = photo(*size), preprocessor(EFFICIENTNET)
    almost_equal(ours.resize(image), theirs(image))
    tensor = transforms.Normalize(*IMAGENET.values())(transforms.ToTensor()(theirs(image))).numpy()
    assert ours(image).shape == tensor.shape and ours(image).dtype == np.float32
    level = 1 / (255 * min(EFFICIENTNET.std))
    assert np.abs(ours(image) - tensor).max() <= level + 1e-5
    assert np.mean(np.abs(ours(image) - tensor) > 1e-5) <= 0.001


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_every_interpolation_is_torchvision_s(interpolation: Any, transforms: Any) -> None:
    mode = transforms.InterpolationMode(interpolation)
    theirs = transforms.Compose([transforms.Resize(96, mode), transforms.CenterCrop(80)])
    steps = Preprocess(shorter_side=96, center_crop=80, interpolation=interpolation)
    for size in ((250, 190), (61, 110)):
        # Of the filters only bilinear has weights of few digits here, and so many values right between two levels.
        almost_equal(preprocessor(steps, 80).resize(photo(*size)), theirs(photo(*size)), share=0.005)


@pytest.mark.parametrize("size", [(300, 200), (200, 333), (50, 70)], ids=str)
def test_a_crop_beyond_the_image_is_padded_as_torchvision_does(size: tuple[int, int], transforms: Any) -> None:
    theirs = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(81)])
    ours = preprocessor(Preprocess(shorter_side=64, center_crop=81), 81)
    almost_equal(ours.resize(photo(*size)), theirs(photo(*size)))


@pytest.mark.parametrize("size", [size for size in SIZES if max(size) <= MAX_ASPECT * min(size)], ids=str)
def test_shorter_side_alone_is_torchvision_s_resize(size: tuple[int, int], transforms: Any) -> None:
    image = photo(*size)
    theirs = transforms.Resize(52, transforms.InterpolationMode.BILINEAR)(image)
    assert np.array_equal(np.asarray(preprocessor(Preprocess(shorter_side=52), None).resize(image)), theirs)


def test_stretch_is_torch_s_antialiased_interpolation() -> None:
    torch = pytest.importorskip("torch")
    for size in ((500, 375), (30, 41), (64, 48)):
        image = photo(*size)
        plane = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).astype(np.float64))[None]
        theirs = torch.nn.functional.interpolate(
            plane, size=(48, 64), mode="bilinear", align_corners=False, antialias=True
        )
        ours = np.asarray(preprocessor(Preprocess(), (48, 64)).resize(image)).transpose(2, 0, 1)
        assert np.abs(ours - theirs[0].numpy()).max() <= 1.0  # Pillow rounds twice, to 8 bits, between its two passes


@pytest.mark.parametrize("size", [(512, 512), (1024, 512), (512, 768)], ids=str)
def test_crop_share_is_a_central_crop_of_the_resized_whole(size: tuple[int, int]) -> None:
    # 0.875 of 512 pixels brought to 224 halves the image: inside, the same as halving the whole and keeping 224.
    ours = np.asarray(preprocessor(Preprocess(crop_share=0.875)).resize(photo(*size)))
    half = np.asarray(photo(*size).resize((size[0] // 2, size[1] // 2), Image.Resampling.BILINEAR))
    left, top = (size[0] // 2 - 224) // 2, (size[1] // 2 - 224) // 2
    assert ours.shape == (224, 224, 3)
    assert np.array_equal(ours[1:-1, 1:-1], half[top + 1 : top + 223, left + 1 : left + 223])


@pytest.mark.parametrize("share", [0.5, 0.875, 1.0])
@pytest.mark.parametrize("size", [(101, 60), (60, 101), (75, 75)], ids=str)
def test_crop_share_sees_its_square_and_nothing_else(size: tuple[int, int], share: float) -> None:
    pixels = np.asarray(photo(*size))
    side = int(share * min(size))
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    square = pixels[top : top + side, left : left + side]
    ours = preprocessor(Preprocess(crop_share=share, interpolation="bicubic"), 48)
    expected = Image.fromarray(square).resize((48, 48), Image.Resampling.BICUBIC)
    framed = np.full_like(pixels, 255)
    framed[top : top + side, left : left + side] = square
    assert np.array_equal(np.asarray(ours.resize(Image.fromarray(pixels))), np.asarray(expected))
    assert np.array_equal(np.asarray(ours.resize(Image.fromarray(framed))), np.asarray(expected))


@pytest.mark.parametrize("steps", [{}, {"crop_share": 0.75}, {"shorter_side": 80, "center_crop": 64}], ids=str)
@pytest.mark.parametrize("size", [(300, 200), (40, 30), (64, 64)], ids=str)
def test_without_antialiasing_four_pixels_decide(size: tuple[int, int], steps: dict[str, Any]) -> None:
    """As torch's interpolate and tf.image.resize do by default; Pillow rounds down to whole levels."""
    import torch

    image = photo(*size)
    got = preprocessor(Preprocess(interpolation="bilinear_no_antialias", **steps), 64).resize(image)
    if "crop_share" in steps:
        side = int(0.75 * min(size))
        left, top = (size[0] - side) // 2, (size[1] - side) // 2
        image = image.crop((left, top, left + side, top + side))
    to = (64, 64)
    if "shorter_side" in steps:
        to = (80 * size[1] // min(size), 80 * size[0] // min(size))
    pixels = torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(pixels, to, mode="bilinear", align_corners=False)
    if "shorter_side" in steps:
        top, left = round((to[0] - 64) / 2), round((to[1] - 64) / 2)
        expected = expected[:, :, top : top + 64, left : left + 64]
    difference = expected[0].permute(1, 2, 0).numpy() - np.asarray(got, np.float32)
    assert np.abs(difference).max() < 1.01
    assert got.size == (64, 64)


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    image = noise(224, 224)
    for steps in (Preprocess(), Preprocess(shorter_side=224, center_crop=224, interpolation="bicubic")):
        assert np.array_equal(np.asarray(preprocessor(steps).resize(image)), np.asarray(image))


def test_normalisation_is_that_of_float64() -> None:
    image, steps = noise(64, 48), Preprocess(**IMAGENET)
    tensor = preprocessor(steps, (48, 64))(image)
    assert tensor.dtype == np.float32 and tensor.flags.c_contiguous
    assert np.abs(tensor - normalised(np.asarray(image), steps)).max() < 2e-6


def test_bgr_turns_the_channels_and_keeps_the_order_of_mean_and_std() -> None:
    steps = Preprocess(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    tensor = preprocessor(steps, 8, color="BGR")(solid((255, 0, 51), 8, 8))
    # Blue is 51 / 255 = 0.2 and comes first; mean and std are in the order of the graph's colours.
    assert tensor[:, 0, 0] == pytest.approx([(0.2 - 0.1) / 0.5, (0.0 - 0.2) / 0.6, (1.0 - 0.3) / 0.7], abs=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("color", ["RGB", "BGR"])
def test_nhwc_is_nchw_transposed(dtype: Any, color: Any) -> None:
    image, steps = noise(20, 12), Preprocess(**IMAGENET)
    first = preprocessor(steps, (12, 20), dtype=dtype, color=color)(image)
    last = preprocessor(steps, (12, 20), dtype=dtype, color=color, layout="NHWC")(image)
    assert last.shape == (12, 20, 3) and last.flags.c_contiguous
    assert np.array_equal(first, last.transpose(2, 0, 1))


def test_a_uint8_graph_gets_pixels() -> None:
    image = noise(20, 12)
    tensor = preprocessor(Preprocess(), (12, 20), dtype="uint8", layout="NHWC")(image)
    assert tensor.dtype == np.uint8 and np.array_equal(tensor, np.asarray(image))


def test_a_float16_graph_gets_the_rounded_float32() -> None:
    image, steps = noise(20, 12), Preprocess(**IMAGENET)
    half = preprocessor(steps, (12, 20), dtype="float16")(image)
    assert half.dtype == np.float16
    assert np.array_equal(half, preprocessor(steps, (12, 20))(image).astype(np.float16))


GEOMETRIES = {
    "resize and crop": (EFFICIENTNET, 224),
    "resize and a crop beyond it": (Preprocess(shorter_side=20, center_crop=31), 31),
    "crop share": (Preprocess(crop_share=0.875), 32),
    "stretch": (Preprocess(interpolation="lanczos"), (24, 40)),
}


@settings(deadline=None, max_examples=80)
@given(name=st.sampled_from(sorted(GEOMETRIES)), width=st.integers(1, 600), height=st.integers(1, 600))
@example("resize and crop", 1, 1)
@example("resize and crop", 1, 5000)
@example("resize and crop", 5000, 1)
@example("crop share", 1, 1)
@example("crop share", 1, 5000)
@example("crop share", 5000, 1)
@example("stretch", 1, 5000)
@example("stretch", 5000, 1)
@example("resize and a crop beyond it", 1, 1)
def test_the_shape_is_the_graph_s_for_every_size(name: str, width: int, height: int) -> None:
    steps, side = GEOMETRIES[name]
    if name == "resize and a crop beyond it" and max(width, height) > MAX_ASPECT * min(width, height):
        return
    expected = side if isinstance(side, tuple) else (side, side)
    tensor = preprocessor(steps, side)(solid((255, 0, 0), width, height))
    assert tensor.shape == (3, *expected)
    assert np.isfinite(tensor).all()
    # Red stays red in the middle, whatever was cut away or padded.
    middle = tensor[:, expected[0] // 2, expected[1] // 2]
    assert middle == pytest.approx(normalised(np.array([[[255, 0, 0]]], np.uint8), steps).ravel(), abs=1e-5)


@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 700), height=st.integers(1, 700))
@example(1, 1)
@example(1, MAX_ASPECT)
@example(MAX_ASPECT + 1, 1)
@example(5000, 1)
@example(1, 5000)
def test_a_dynamic_side_follows_the_image_up_to_a_bound(width: int, height: int) -> None:
    # A strip of 1 x 5000 pixels would become 520 x 2,600,000: gigabytes from an image of some bytes.
    ours, image = preprocessor(Preprocess(shorter_side=40), None), solid((1, 2, 3), width, height)
    if max(width, height) > MAX_ASPECT * min(width, height):
        with pytest.raises(TooLarge, match=f"{width} x {height}"):
            ours(image)
        return
    _, rows, columns = ours(image).shape
    assert min(rows, columns) == 40
    assert max(rows, columns) == 40 * max(width, height) // min(width, height)
