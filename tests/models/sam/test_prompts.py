"""Prompts: what is refused and how, and tokens as the reference lays them out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ekiben.errors import BadInput
from models.sam.grids import longest_side_shape
from models.sam.prompts import (
    MAX_POINTS,
    MAX_PROMPTS,
    Prompt,
    check_prompts,
    mask_inputs,
    point_tokens,
    read_prompts,
    whole_image,
)

POINT = [3, 4, 1]

# ---- reading ----


def test_everything_a_prompt_may_hold() -> None:
    prompts, idents = read_prompts(
        [
            {"points": [[1, 2.5, 1], [0, -0.0, 0.0]]},
            {"box": [0, 1, 2, 3.5]},
            {"points": [POINT], "box": [1, 1, 9, 9], "mask_input": "an-id"},
            {"mask_input": "other", "points": None, "box": None},
            {"points": [], "box": [1, 2, 3, 4], "mask_input": None},
        ]
    )
    assert prompts == [
        Prompt(((1.0, 2.5, 1), (0.0, 0.0, 0))),
        Prompt(box=(0.0, 1.0, 2.0, 3.5)),
        Prompt(((3.0, 4.0, 1),), (1.0, 1.0, 9.0, 9.0)),
        Prompt(),
        Prompt(box=(1.0, 2.0, 3.0, 4.0)),
    ]
    assert idents == [None, None, "an-id", "other", None]
    x, _, label = prompts[0].points[0]
    assert type(x) is float and type(label) is int
    assert read_prompts([]) == ([], [])


WRONG: dict[str, Any] = {
    "no object": [POINT],
    "a string": "box",
    "null": None,
    "a number": 3,
    "nothing": {},
    "only nulls": {"points": None, "box": None, "mask_input": None},
    "an empty list of points": {"points": []},
    "an unknown key": {"points": [POINT], "label": 1},
    "an empty key": {"": 1, "points": [POINT]},
    "points are no list": {"points": {"x": 1}},
    "points are text": {"points": "1,2,1"},
    "points are false": {"points": False},
    "points are 0": {"points": 0, "box": [1, 1, 2, 2]},
    "one flat point": {"points": [3, 4, 1]},
    "a point of two": {"points": [[3, 4]]},
    "a point of four": {"points": [[3, 4, 1, 1]]},
    "a point of text": {"points": [["3", 4, 1]]},
    "a nested point": {"points": [[[3], 4, 1]]},
    "a null point": {"points": [None]},
    "a NaN": {"points": [[math.nan, 4, 1]]},
    "infinity": {"points": [[3, -math.inf, 1]]},
    "a huge integer": {"points": [[10**400, 4, 1]]},
    "a huge negative integer": {"box": [-(10**400), 1, 2, 3]},
    "a bool coordinate": {"points": [[True, 4, 1]]},
    "a bool label": {"points": [[3, 4, True]]},
    "label 2": {"points": [[3, 4, 2]]},
    "label -1": {"points": [[3, 4, -1]]},
    "half a label": {"points": [[3, 4, 0.5]]},
    "a NaN label": {"points": [[3, 4, math.nan]]},
    "a label of text": {"points": [[3, 4, "1"]]},
    "a huge label": {"points": [[3, 4, 10**400]]},
    "a box of three": {"box": [1, 2, 3]},
    "an empty box list": {"box": []},
    "a box of five": {"box": [1, 2, 3, 4, 5]},
    "a nested box": {"box": [[1, 2, 3, 4]]},
    "a box of text": {"box": "1,2,3,4"},
    "a box of bools": {"box": [False, False, True, True]},
    "a NaN in a box": {"box": [0, 0, math.nan, 5]},
    "a box as an object": {"box": {"x0": 1}},
    "a box of false": {"box": False},
    "mask_input is a number": {"mask_input": 5},
    "mask_input is a list": {"mask_input": ["a"], "points": [POINT]},
    "mask_input is false": {"mask_input": False, "points": [POINT]},
    "101 points": {"points": [POINT] * (MAX_POINTS + 1)},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("number", [0, 7])
def test_what_is_wrong_is_refused_by_its_number(wrong: Any, number: int) -> None:
    with pytest.raises(BadInput, match=rf"^prompt {number}\b") as refused:
        read_prompts([{"points": [POINT]}] * number + [wrong, {"points": [POINT]}])
    assert len(refused.value.message) < 200


@pytest.mark.parametrize("given", [None, {}, {"points": [POINT]}, "[]", 3, True, b"[]", ()], ids=repr)
def test_prompts_are_a_list(given: Any) -> None:
    with pytest.raises(BadInput, match="JSON list"):
        read_prompts(given)


def test_as_many_as_are_taken_and_no_more() -> None:
    prompts, idents = read_prompts([{"points": [POINT] * 20}] * MAX_PROMPTS)
    assert len(prompts) == len(idents) == 1000 and len(prompts[-1].points) == 20
    prompts, _ = read_prompts([{"points": [POINT] * MAX_POINTS}] * 200)
    assert sum(len(prompt.points) for prompt in prompts) == 20_000
    with pytest.raises(BadInput, match="more than 20000 points in all"):
        read_prompts([{"points": [POINT] * MAX_POINTS}] * 200 + [{"points": [POINT]}])
    with pytest.raises(BadInput, match="there are 1001 prompts; at most 1000"):
        read_prompts([{"points": [POINT]}] * (MAX_PROMPTS + 1))


def test_a_long_key_is_not_repeated_at_length() -> None:
    with pytest.raises(BadInput) as refused:
        read_prompts([{"k" * 100_000: 1}])
    assert len(refused.value.message) < 200


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(["points", "box", "x"]), inner),
    max_leaves=12,
)


@settings(max_examples=200)
@given(st.lists(st.fixed_dictionaries({}, optional={"points": _JSON, "box": _JSON, "mask_input": _JSON}), max_size=3))
def test_any_json_is_read_or_refused(given: Any) -> None:
    try:
        prompts, idents = read_prompts(given)
    except BadInput:
        return
    assert len(prompts) == len(idents) == len(given)
    for prompt in prompts:
        assert all(math.isfinite(x) and math.isfinite(y) and label in (0, 1) for x, y, label in prompt.points)
        assert prompt.box is None or (len(prompt.box) == 4 and all(map(math.isfinite, prompt.box)))


# ---- what lies in the image ----


@pytest.mark.parametrize("place", [(0, 0), (-0.0, -0.0), (639, 479), (639.999, 479.999), (0.5, 0)], ids=str)
def test_points_inside(place: tuple[float, float]) -> None:
    check_prompts([Prompt(((*place, 1),))], 640, 480)


@pytest.mark.parametrize("place", [(640, 0), (0, 480), (-1e-9, 0), (0, -0.001), (1e300, 5), (5, -1e300)], ids=str)
def test_points_outside(place: tuple[float, float]) -> None:
    with pytest.raises(BadInput, match=r"^prompt 1: the point .* is outside the image \(640 x 480\)$"):
        check_prompts([Prompt(((1, 1, 1),)), Prompt(((2, 2, 0), (*place, 1)))], 640, 480)


@pytest.mark.parametrize(
    "box", [(0, 0, 640, 480), (639, 479, 640, 480), (0, 0, 1e-9, 1e-9), (10.5, 2, 11, 400)], ids=str
)
def test_boxes_inside(box: tuple[float, float, float, float]) -> None:
    check_prompts([Prompt(box=box)], 640, 480)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((5, 5, 5, 9), "empty"),
        ((5, 5, 9, 5), "empty"),
        ((9, 5, 5, 9), "empty"),
        ((5, 9, 9, 5), "empty"),
        ((0, 0, 0, 0), "empty"),
        ((-1, 0, 9, 9), "outside"),
        ((0, -0.01, 9, 9), "outside"),
        ((0, 0, 640.01, 9), "outside"),
        ((0, 0, 9, 481), "outside"),
        ((700, 500, 800, 600), "outside"),
        ((-1e300, 0, 1e300, 9), "outside"),
    ],
    ids=str,
)
def test_boxes_that_are_no_box_of_the_image(box: tuple[float, float, float, float], reason: str) -> None:
    with pytest.raises(BadInput, match=f"^prompt 2: the box .* is {reason}"):
        check_prompts([whole_image(640, 480), Prompt(((1, 1, 1),)), Prompt(((1, 1, 1),), box)], 640, 480)


def test_the_whole_image_is_a_prompt_of_it() -> None:
    assert whole_image(640, 480) == Prompt(box=(0.0, 0.0, 640.0, 480.0))
    for size in ((1, 1), (3, 7), (8000, 8000)):
        check_prompts([whole_image(*size)], *size)


# ---- tokens ----


def tokens(*prompts: Prompt, size: tuple[int, int] = (1024, 1024)) -> tuple[Any, Any]:
    return point_tokens(prompts, size, longest_side_shape(*size))


def test_points_are_followed_by_one_padding_point() -> None:
    coords, labels = tokens(Prompt(((10, 20, 1), (30, 40.5, 0))))
    assert coords.dtype == labels.dtype == np.float32
    assert coords.tolist() == [[[10, 20], [30, 40.5], [0, 0]]] and labels.tolist() == [[1, 0, -1]]


def test_a_box_is_its_corners_without_padding() -> None:
    coords, labels = tokens(Prompt(box=(1, 2, 30, 40)))
    assert coords.tolist() == [[[1, 2], [30, 40]]] and labels.tolist() == [[2, 3]]


def test_points_come_before_the_box() -> None:
    coords, labels = tokens(Prompt(((5, 6, 0),), (1, 2, 30, 40)))
    assert coords.tolist() == [[[5, 6], [1, 2], [30, 40]]] and labels.tolist() == [[0, 2, 3]]


def test_a_mask_alone_has_no_tokens() -> None:
    coords, labels = tokens(Prompt(mask_input=np.zeros((256, 256), np.float32)))
    assert coords.tolist() == [[[0, 0]]] and labels.tolist() == [[-2]]


def test_shorter_prompts_are_filled_with_absent_points() -> None:
    mask = np.zeros((256, 256), np.float32)
    mixed = [
        Prompt(((5, 6, 1),)),
        Prompt(box=(1, 2, 3, 4)),
        Prompt(((5, 6, 1), (7, 8, 0), (9, 9, 1)), (1, 2, 3, 4)),
        Prompt(mask_input=mask),
    ]
    coords, labels = tokens(*mixed)
    assert coords.shape == (4, 5, 2)
    assert labels.tolist() == [[1, -1, -2, -2, -2], [2, 3, -2, -2, -2], [1, 0, 1, 2, 3], [-2] * 5]
    assert coords[0].tolist() == [[5, 6], [0, 0], [0, 0], [0, 0], [0, 0]]
    for number, prompt in enumerate(mixed[:3]):  # as alone
        alone_coords, alone_labels = tokens(prompt)
        count = alone_labels.shape[1]
        assert np.array_equal(coords[number, :count], alone_coords[0])
        assert np.array_equal(labels[number, :count], alone_labels[0])


@pytest.mark.parametrize(
    "size", [(1200, 1800), (480, 640), (333, 1000), (800, 534), (3, 7), (1, 64), (2250, 1501)], ids=str
)
def test_coordinates_are_those_of_the_reference(size: tuple[int, int]) -> None:
    transform = _resize_longest_side()
    random = np.random.default_rng(1)
    points = random.uniform(0, 1, (20, 2)) * size[::-1]
    box = np.sort(random.uniform(0, 1, (2, 2)), axis=0) * size[::-1]
    prompt = Prompt(tuple((float(x), float(y), 1) for x, y in points), tuple(box.ravel().tolist()))
    coords, _ = tokens(prompt, size=size)
    assert np.array_equal(coords[0, :20], transform.apply_coords(points, size).astype(np.float32))
    assert np.array_equal(
        coords[0, 20:].reshape(1, 4), transform.apply_boxes(box.reshape(1, 4), size).astype(np.float32)
    )


def _resize_longest_side() -> Any:
    pytest.importorskip("torch")
    from export.torchvision_ops import declare_missing

    declare_missing()
    return pytest.importorskip("segment_anything.utils.transforms").ResizeLongestSide(1024)


def test_which_prompts_bring_a_mask() -> None:
    one, two = np.ones((256, 256), np.float32), np.full((256, 256), 2, np.float32)
    index, masks = mask_inputs([Prompt(mask_input=one), whole_image(3, 3), Prompt(((1, 1, 1),), mask_input=two)])
    assert index == [0, 2] and masks.dtype == np.float32
    assert np.array_equal(masks, np.stack([one, two]))
    index, masks = mask_inputs([whole_image(3, 3)])
    assert index == [] and masks.shape == (0, 256, 256)
