"""Prompts as tensors and masks as tensors: values by hand and from the toy's answers in numpy, and each refusal."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from ekiben.errors import BadInput, Refusal, TooLarge
from ekiben.settings import Settings
from models.engine import engine
from models.masks.predicted_masks import AutoMask, PromptMask
from models.masks.rle import encode, from_uncompressed
from models.model_key import ModelKey
from models.sam.auto_options import AutoOptions
from models.sam.prompts import Prompt
from services.app_state import AppState
from services.inference.context import InferenceCore, RequestContext
from services.inference.pipeline import ImageSource
from services.model_registry.index import ServableModel
from services.open_inference.parameters import Parameters, RequestedOutput
from services.open_inference.sam_inputs import _output, infer, read_tensors
from services.open_inference.tensors import Tensor, texts
from tests import toy_sam
from tests.conftest import publish
from tests.operations import automatic
from tests.toy_models import encoded

SAM = ServableModel(ModelKey("local", "sam_toy", 1), "masks", 0, "sam")
SIZE = (320, 213)
PHOTO = toy_sam.shapes(*SIZE)
BOXES = toy_sam.boxes_of(*SIZE)
CLICKS = [toy_sam.middle(box) for box in BOXES]
PIXELS = np.asarray(PHOTO)
NO_CORE = RequestContext(core=cast(InferenceCore, None))
"""For requests that are refused before anything runs."""


def floats(*values: Any) -> NDArray[np.float32]:
    return np.array(values, np.float32)


# ---- prompts ----


def test_points_boxes_and_padding_become_prompts() -> None:
    prompts = read_tensors(
        {
            "point_coords": floats([[1, 2], [3.5, 4]], [[5, 6], [np.nan, np.inf]]),
            "point_labels": np.array([[1, 0], [1, -1]], np.int64),
            "boxes": floats([0, 0, 9, 8], [1, 2, 3, 4]),
        }
    )
    assert prompts == (
        Prompt(((1.0, 2.0, 1), (3.5, 4.0, 0)), (0.0, 0.0, 9.0, 8.0)),
        Prompt(((5.0, 6.0, 1),), (1.0, 2.0, 3.0, 4.0)),  # the padded point may hold anything
    )


def test_a_single_prompt_may_lack_the_first_axis() -> None:
    points = {"point_coords": floats([1, 2], [3, 4]), "point_labels": floats(1, 0)}
    assert read_tensors(points) == (Prompt(((1.0, 2.0, 1), (3.0, 4.0, 0))),)
    assert read_tensors({"boxes": np.array([1, 2, 3, 4], np.int32)}) == (Prompt(box=(1.0, 2.0, 3.0, 4.0)),)
    (prompt,) = read_tensors({"mask_input": np.ones((256, 256), np.float16)})
    assert (prompt.points, prompt.box) == ((), None)
    assert prompt.mask_input is not None
    assert (prompt.mask_input.shape, prompt.mask_input.dtype) == ((256, 256), np.float32)


@pytest.mark.parametrize("shape", [(2, 256, 256), (2, 1, 256, 256)])
def test_each_prompt_gets_its_mask_input(shape: tuple[int, ...]) -> None:
    """The first has a point besides; the second has only padding, and so its mask alone."""
    masks = np.zeros(shape, np.float64)
    masks[1] = 7
    first, second = read_tensors(
        {
            "point_coords": floats([[1, 2]], [[0, 0]]),
            "point_labels": np.array([[1], [-1]]),
            "mask_input": masks,
        }
    )
    assert (first.points, first.box, second.points, second.box) == (((1.0, 2.0, 1),), None, (), None)
    assert first.mask_input is not None and second.mask_input is not None
    assert (np.unique(first.mask_input).tolist(), np.unique(second.mask_input).tolist()) == ([0.0], [7.0])


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"point_coords": floats([[1, 2]])}, "point_coords and point_labels go together"),
        ({"point_labels": floats([1])}, "point_coords and point_labels go together"),
        (
            {"boxes": floats([0, 0, 1, 1], [0, 0, 1, 1]), "mask_input": np.zeros((256, 256), np.float32)},
            "point_coords, boxes and mask_input have one row per prompt each; there are [1, 2]",
        ),
        ({"boxes": np.zeros((0, 4))}, "there are 0 prompts; 1 to 1000 are taken at once"),
        ({"boxes": np.zeros((1001, 4))}, "there are 1001 prompts; 1 to 1000 are taken at once"),
        (
            {"point_coords": np.zeros((1, 2, 2)), "point_labels": np.zeros((1, 3))},
            "point_coords are [prompts, points, 2] and point_labels [prompts, points]; they are [1, 2, 2] and [1, 3]",
        ),
        (
            {"point_coords": np.zeros((1, 2, 3)), "point_labels": np.zeros((1, 2))},
            "point_coords are [prompts, points, 2] and point_labels [prompts, points]; they are [1, 2, 3] and [1, 2]",
        ),
        (
            {"point_coords": np.zeros((1, 101, 2)), "point_labels": np.zeros((1, 101))},
            "a prompt has at most 100 points, padding included; these have 101",
        ),
        ({"boxes": np.zeros((2, 5))}, "boxes are [prompts, 4], x0, y0, x1, y1; they are [2, 5]"),
        ({"boxes": np.zeros((1, 1, 4))}, "boxes has 2 axes; it is [1, 1, 4]"),
        ({"point_coords": floats(1, 2), "point_labels": floats(1)}, "point_coords has 3 axes; it is [2]"),
        ({"boxes": np.zeros((1, 4), bool)}, "boxes is a tensor of numbers"),
        ({"boxes": texts([b"1"] * 4, (1, 4))}, "boxes is a tensor of numbers"),
        ({"boxes": floats([0, 0, 1, np.nan])}, "prompt 0: a box is [x0, y0, x1, y1], four numbers"),
        (
            {"point_coords": floats([[1, 2]], [[np.inf, 2]]), "point_labels": floats([1], [1])},
            "prompt 1: a point is [x, y, label], three numbers",
        ),
        (
            {"point_coords": floats([[1, 2]]), "point_labels": floats([2])},
            "prompt 0: the label of a point is 1 (foreground) or 0 (background)",
        ),
        (
            {"point_coords": floats([[1, 2]]), "point_labels": floats([-1])},
            "prompt 0 is empty: it needs points, a box or mask_input",
        ),
        (
            {"mask_input": np.zeros((1, 256, 256), np.int32)},
            "mask_input is floating-point [prompts, 256, 256]; it is [1, 256, 256]",
        ),
        (
            {"mask_input": np.zeros((1, 256, 255), np.float32)},
            "mask_input is floating-point [prompts, 256, 256]; it is [1, 256, 255]",
        ),
        (
            {"mask_input": np.zeros((1, 2, 256, 256), np.float32)},
            "mask_input has one mask per prompt; it is [1, 2, 256, 256]",
        ),
        ({"mask_input": np.full((256, 256), np.inf, np.float32)}, "mask_input holds values that are not finite"),
        ({"mask_input": np.full((256, 256), 1e39)}, "mask_input holds values that are not finite"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else "",
)
def test_what_is_no_prompt_says_why(tensors: Mapping[str, NDArray[Any]], sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        read_tensors(tensors)
    assert str(caught.value) == sentence


# ---- outputs ----


def prompt_mask(pixels: NDArray[Any], iou: float, stability: float | None, logit: float | None = None) -> PromptMask:
    logits = None if logit is None else np.full((256, 256), logit, np.float32)
    return PromptMask(encode(pixels.astype(bool)), iou, stability, logits)


def test_outputs_have_the_axes_prompts_and_masks_of_each() -> None:
    pixels = np.random.default_rng(0).random((2, 3, 4, 5)) > 0.5
    rows = [
        [prompt_mask(pixels[p, m], p + m / 10, None if m == 2 else m / 2, float(10 * p + m)) for m in range(3)]
        for p in range(2)
    ]
    masks = _output("masks", rows, (4, 5))
    assert masks.dtype == np.bool_
    assert np.array_equal(masks, pixels)
    iou, stability = (_output(name, rows, (4, 5)) for name in ("iou_predictions", "stability_scores"))
    assert (iou.dtype, stability.dtype) == (np.float32, np.float32)
    assert np.array_equal(iou, floats([0, 0.1, 0.2], [1, 1.1, 1.2]))
    assert np.array_equal(stability, floats([0, 0.5, np.nan], [0, 0.5, np.nan]), equal_nan=True)
    logits = _output("low_res_masks", rows, (4, 5))
    assert (logits.shape, logits.dtype) == ((2, 3, 256, 256), np.float32)
    assert logits[:, :, 0, 255].tolist() == [[0, 1, 2], [10, 11, 12]]


def test_automatic_masks_are_one_row_even_where_there_are_none() -> None:
    assert _output("masks", [()], (4, 5)).shape == (1, 0, 4, 5)
    assert _output("iou_predictions", [()], (4, 5)).shape == (1, 0)
    one = AutoMask(encode(np.eye(4, 5, dtype=bool)), 0.9, 1.0, (0.0, 0.0), (0, 0, 5, 4))
    assert np.array_equal(_output("masks", [[one]], (4, 5)), np.eye(4, 5)[None, None])


def test_masks_of_more_than_64_mib_are_not_sent() -> None:
    empty = prompt_mask(np.zeros((1, 1)), 0, None)
    with pytest.raises(TooLarge) as caught:
        _output("masks", [[empty] * 3], (4096, 8192))
    assert str(caught.value) == (
        "3 masks of 8192 x 4096 are 100663296 bytes; at most 67108864 are sent. POST /v1/masks gives them as runs of "
        "pixels"
    )


# ---- requests ----


def inputs_of(image: Tensor | None = None, **tensors: NDArray[Any]) -> dict[str, Tensor]:
    given = {"image": Tensor("image", PIXELS) if image is None else image}
    return given | {name: Tensor(name, values) for name, values in tensors.items()}


def asked(*names: str) -> Sequence[RequestedOutput]:
    return [RequestedOutput(name) for name in names or ("masks",)]


def image(*values: bytes) -> Tensor:
    return Tensor("image", texts(list(values), (len(values),)))


PROMPTS = '[{"box": [0, 0, 1, 1]}]'
BOX = floats([0, 0, 9, 9])
AUTO = AutoOptions(points_per_side=2)


@pytest.mark.parametrize(
    ("inputs", "outputs", "parameters", "error", "sentence"),
    [
        pytest.param(
            inputs_of(box=BOX), asked(), Parameters(), BadInput,
            "model sam_toy has no input 'box'; there are image, point_coords, point_labels, boxes, mask_input",
            id="input",
        ),
        pytest.param({"boxes": Tensor("boxes", BOX)}, asked(), Parameters(), BadInput, "the input image is missing",
                     id="no image"),
        pytest.param(inputs_of(image(b"a", b"b")), asked(), Parameters(), BadInput,
                     "prompts are of one image; image has 2", id="two files"),
        pytest.param(inputs_of(Tensor("image", PIXELS[None].repeat(3, 0))), asked(), Parameters(), BadInput,
                     "prompts are of one image; image has 3", id="three of pixels"),
        pytest.param(inputs_of(Tensor("image", PIXELS.astype(np.float32))), asked(), Parameters(), BadInput,
                     "image is BYTES (an encoded image) or UINT8 (pixels [h, w, 3]), not FP32", id="floats"),
        pytest.param(inputs_of(), asked(), Parameters(store=True, names=frozenset({"store"})), BadInput,
                     "store is for encoded images: of pixels nothing is kept", id="store"),
        pytest.param(inputs_of(boxes=BOX), asked(), Parameters(auto=AUTO), BadInput,
                     "options of automatic masks go without prompts", id="automatic with tensors"),
        pytest.param(inputs_of(), asked(), Parameters(auto=AUTO, prompts=PROMPTS), BadInput,
                     "options of automatic masks go without prompts", id="automatic with prompts"),
        pytest.param(inputs_of(), asked(), Parameters(auto=AUTO, names=frozenset({"multimask"})), BadInput,
                     "options of automatic masks go without prompts", id="automatic with multimask"),
        pytest.param(inputs_of(), asked("masks", "low_res_masks"), Parameters(auto=AUTO), BadInput,
                     "low_res_masks are of prompts; automatic masks have none", id="automatic logits"),
        pytest.param(inputs_of(boxes=BOX), asked(), Parameters(prompts=PROMPTS), BadInput,
                     "prompts come as a parameter or as inputs, not both", id="both"),
        pytest.param(inputs_of(), asked(), Parameters(prompts="[{"), BadInput, "prompts is not JSON: ", id="JSON"),
        pytest.param(inputs_of(boxes=BOX.repeat(86, 0)), asked("low_res_masks"), Parameters(), TooLarge,
                     "low_res_masks of 258 masks have 67633152 bytes; at most 67108864 are sent", id="three of 86"),
        pytest.param(inputs_of(boxes=BOX.repeat(257, 0)), asked("low_res_masks"), Parameters(multimask=False),
                     TooLarge, "low_res_masks of 257 masks have 67371008 bytes; at most 67108864 are sent",
                     id="one of 257"),
    ],
)  # fmt: skip
def test_a_request_that_is_wrong_says_why(
    inputs: dict[str, Tensor],
    outputs: Sequence[RequestedOutput],
    parameters: Parameters,
    error: type[Refusal],
    sentence: str,
) -> None:
    with pytest.raises(error) as caught:
        asyncio.run(infer(NO_CORE, SAM, inputs, outputs, parameters))
    assert str(caught.value).startswith(sentence)
    assert sentence.endswith("JSON: ") or str(caught.value) == sentence


def test_masks_are_those_of_the_toy_in_the_order_of_the_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels with tensors, a file with a parameter, and automatic masks, on the parts of one process."""
    monkeypatch.setattr(engine, "reclaim_memory", lambda: None)  # takes longer than the test
    toy_sam.sam(tmp_path / "toy")
    publish(tmp_path / "var", "sam_toy", tmp_path / "toy")
    file = image(encoded(PHOTO))

    async def check(app_state: AppState) -> None:
        context = RequestContext(app_state.inference)

        async def answer(inputs: dict[str, Tensor], *names: str, **given: Any) -> dict[str, NDArray[Any]]:
            tensors = await infer(context, SAM, inputs, asked(*names), Parameters(**given))
            assert [tensor.name for tensor in tensors] == list(names)
            return {tensor.name: tensor.values for tensor in tensors}

        points = {"point_coords": floats(*[[click] for click in CLICKS[:2]]), "point_labels": floats([1], [1])}
        got = await answer(inputs_of(**points), "iou_predictions", "low_res_masks", "masks")
        assert app_state.records.predictions("local").total == 0
        cells = toy_sam.cells_of(PHOTO)
        for number in range(2):
            expected = toy_sam.expected_masks(PHOTO, [(*CLICKS[number], 1)])
            assert np.array_equal(got["masks"][number], [one.mask for one in expected])
            assert got["iou_predictions"][number] == pytest.approx([one.predicted_iou for one in expected], abs=1e-5)
            logits = toy_sam.logits_of(cells, toy_sam.tokens_of(SIZE, [(*CLICKS[number], 1)]))
            assert np.abs(got["low_res_masks"][number] - logits[1:]).max() < 1e-3

        parameter = f'[{{"box": {list(BOXES[2])}}}]'
        got = await answer(inputs_of(file), "masks", multimask=False, prompts=parameter)
        (expected_box,) = toy_sam.expected_masks(PHOTO, box=BOXES[2], multimask=False)
        assert np.array_equal(got["masks"], expected_box.mask[None, None])
        (row,) = app_state.records.predictions("local").items
        assert row.parameters["multimask"] is False

        got = await answer(inputs_of(file), "masks", auto=AUTO, store=False)
        body = await automatic(app_state, ImageSource(encoded(PHOTO)), AUTO, model="sam_toy", store=False)
        found = [from_uncompressed(mask["segmentation"]).decode() for mask in body["masks"]]
        assert len(found) > 3
        assert np.array_equal(got["masks"], [found])
        assert app_state.records.predictions("local").total == 1

    async def whole() -> None:
        app_state = await AppState.start(Settings(home=tmp_path / "var", threads=2, device="cpu"))
        try:
            await check(app_state)
        finally:
            await app_state.stop()

    asyncio.run(whole())
