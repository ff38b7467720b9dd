"""Masks as runs: against the pixels themselves, pycocotools and the reference's own numbers; hostile input refused."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from ekiben.errors import BadInput, TooLarge
from models.masks.rle import (
    Rle,
    encode,
    encode_region,
    from_coco,
    from_edges,
    from_uncompressed,
    iou,
    to_coco,
    to_png,
)
from models.masks.rle import to_uncompressed as uncompressed
from tests.models.peak import peak_growth_bytes

Mask = NDArray[np.bool_]

RING = np.array([[0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0], [0, 0, 1, 0, 1, 0], [0, 0, 1, 1, 1, 0], [0] * 6], np.bool_)
CORNERS = np.zeros((5, 6), np.bool_)
CORNERS[0, 0] = CORNERS[-1, -1] = True

sides = st.integers(1, 12)
masks = st.tuples(sides, sides).flatmap(lambda shape: arrays(np.bool_, shape))


def counts_of(mask: Mask) -> list[int]:
    """Run lengths, one pixel after another."""
    counts, value = [0], False
    for pixel in mask.ravel(order="F").tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def blobs(height: int, width: int, seed: int = 0) -> Mask:
    coarse = np.random.default_rng(seed).normal(0, 1, (7, 7)).astype(np.float32)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(np.asarray(smooth) > 0.2)


def coco(mask: Mask) -> dict[str, Any]:
    """pycocotools' own encoding of the pixels."""
    return dict(coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))))


@given(masks)
@settings(max_examples=300, deadline=None)
def test_runs_are_those_of_the_pixels_and_lead_back(mask: Mask) -> None:
    rle = encode(mask)
    assert rle.counts.tolist() == counts_of(mask)
    assert rle.counts.dtype == np.uint32
    assert np.array_equal(rle.decode(), mask)
    assert rle == encode(mask.astype(np.uint8) * 255) == encode(np.asfortranarray(mask))
    assert np.array_equal(rle.inverse().decode(), ~mask)
    assert rle.inverse() == encode(~mask)


@given(masks)
@settings(max_examples=200, deadline=None)
def test_area_and_boxes_are_those_of_the_pixels(mask: Mask) -> None:
    rle = encode(mask)
    y, x = np.nonzero(mask)
    box = (x.min(), y.min(), x.max(), y.max()) if len(x) else (0, 0, 0, 0)
    assert rle.area == mask.sum()
    assert rle.box_xyxy == box
    assert rle.bbox_xywh == (box[0], box[1], box[2] - box[0], box[3] - box[1])


@given(masks, st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3))
@settings(max_examples=300, deadline=None)
def test_a_window_is_the_mask_padded_with_zeros(mask: Mask, top: int, left: int, below: int, right: int) -> None:
    whole = np.pad(mask, ((top, below), (left, right)))
    assert encode_region(mask, top, left, *whole.shape) == encode(whole)
    assert encode(mask).shifted(top, left, *whole.shape) == encode(whole)
    assert encode_region(whole[top : top + mask.shape[0], left : left + mask.shape[1]], top, left, *whole.shape) == (
        encode(whole)
    )


def test_runs_join_across_columns_where_a_window_is_as_high_as_the_frame() -> None:
    assert encode_region(np.ones((4, 3), np.bool_), 0, 1, 4, 6).counts.tolist() == [4, 12, 8]
    assert encode_region(np.ones((4, 3), np.bool_), 0, 3, 4, 6).counts.tolist() == [12, 12]
    assert encode_region(np.ones((3, 3), np.bool_), 0, 1, 4, 6).counts.tolist() == [4, 3, 1, 3, 1, 3, 9]


@pytest.mark.parametrize(("top", "left"), [(-1, 0), (0, -1), (3, 0), (0, 4)])
def test_a_window_that_is_not_inside_the_frame_is_an_error(top: int, left: int) -> None:
    with pytest.raises(ValueError, match="not inside 5 x 6"):
        encode_region(np.ones((3, 3), np.bool_), top, left, 5, 6)
    with pytest.raises(ValueError, match="not inside 5 x 6"):
        encode(np.ones((3, 3), np.bool_)).shifted(top, left, 5, 6)


@given(masks)
@settings(max_examples=200, deadline=None)
def test_column_runs_are_the_runs_of_each_column(mask: Mask) -> None:
    found = [
        (column, *run)
        for column in range(mask.shape[1])
        for run in np.flatnonzero(np.diff(mask[:, column].astype(np.int8), prepend=0, append=0)).reshape(-1, 2).tolist()
    ]
    assert list(zip(*(part.tolist() for part in encode(mask).column_runs()), strict=True)) == found


@given(masks.flatmap(lambda mask: st.tuples(st.just(mask), arrays(np.bool_, mask.shape))))
@settings(max_examples=200, deadline=None)
def test_iou_is_that_of_the_pixels_and_of_pycocotools(pair: tuple[Mask, Mask]) -> None:
    a, b = pair
    expected = (a & b).sum() / max(1, (a | b).sum())
    assert iou(encode(a), encode(b)) == expected
    assert coco_mask.iou([coco(a)], [coco(b)], [0])[0, 0] == pytest.approx(expected, abs=1e-12)


def test_iou_of_masks_of_different_frames_is_an_error() -> None:
    with pytest.raises(ValueError, match="different sizes"):
        iou(encode(RING), encode(RING.T))


@given(masks)
@settings(max_examples=200, deadline=None)
def test_what_is_written_is_pycocotools_and_is_read_again(mask: Mask) -> None:
    rle = encode(mask)
    written = json.loads(json.dumps(to_coco(rle)))
    assert written == {"size": list(mask.shape), "counts": coco(mask)["counts"].decode()}
    assert from_coco(written) == rle
    assert from_uncompressed(json.loads(json.dumps(uncompressed(rle)))) == rle


def test_long_counts_are_read_from_pycocotools_writing() -> None:
    mask = np.zeros((8000, 8000), np.bool_)
    mask[4000:, 6000] = mask[10:20, 7999] = True
    mask[0, 0] = True
    assert from_coco(to_coco(encode(mask))) == encode(mask)
    assert coco_mask.area(to_coco(encode(mask))) == mask.sum() == 4011


def test_known_masks() -> None:
    assert encode(RING).counts.tolist() == [11, 3, 2, 1, 1, 1, 2, 3, 6]
    assert encode(CORNERS).counts.tolist() == [0, 1, 28, 1]
    assert (encode(RING).box_xyxy, encode(CORNERS).box_xyxy) == ((2, 1, 4, 3), (0, 0, 5, 4))
    assert encode(RING).bbox_xywh == (2, 1, 2, 2)
    assert encode(np.zeros((5, 6), np.bool_)).counts.tolist() == [30]
    assert encode(np.ones((5, 6), np.bool_)).counts.tolist() == [0, 30]
    assert encode(RING) != encode(CORNERS)
    assert encode(np.zeros((5, 6), np.bool_)) != encode(np.zeros((6, 5), np.bool_))
    assert len({encode(RING), encode(RING.copy()), encode(CORNERS)}) == 2
    assert encode(RING) != "a mask"


def test_the_references_own_numbers(shared_data: Path) -> None:
    golden = json.loads((shared_data / "sam_golden" / "sam_amg_golden.json").read_text())
    rles = [encode(np.array(mask, np.bool_)) for mask in golden["mask"]]
    assert [uncompressed(rle) for rle in rles] == golden["rle"]
    assert [rle.area for rle in rles] == golden["area"]
    assert [list(rle.box_xyxy) for rle in rles] == golden["boxes_xyxy_inclusive"]
    assert [list(rle.bbox_xywh) for rle in rles] == golden["bbox_xywh"]


def test_edges_that_meet_are_dropped() -> None:
    assert from_edges(np.array([2, 5, 5, 9]), 10, 1).counts.tolist() == [2, 7, 1]
    assert from_edges(np.array([2, 5, 5, 5, 5, 10]), 10, 1).counts.tolist() == [2, 8]


@pytest.mark.parametrize("mask", [RING, CORNERS, blobs(120, 90), np.ones((9, 17), np.bool_)])
def test_png_is_white_where_the_mask_is_set(mask: Mask) -> None:
    image = Image.open(io.BytesIO(to_png(encode(mask))))
    assert image.format == "PNG"
    assert np.array_equal(np.asarray(image.convert("L")), mask * np.uint8(255))


def test_zero_runs_inside_are_read_as_what_they_mean() -> None:
    assert from_uncompressed({"size": [2, 3], "counts": [1, 2, 0, 1, 2, 0]}).counts.tolist() == [1, 3, 2]
    assert from_uncompressed({"size": (2, 3), "counts": (0, 0, 6)}).counts.tolist() == [6]


@pytest.mark.parametrize(
    "counts",
    [
        [],
        [5],
        [7],
        [3, 4],
        [-1, 7],
        [10, -4],
        [2.0, 4.0],
        [True, False],
        ["6"],
        [None],
        [[6]],
        [6, [0]],
        [2**63, 6],
        [2**64, 6],
        [2**70],
        [2**63 - 1, 2**63 - 1, 8],
        [1, 0, 0, 0, 0, 0, 0, 5],  # more counts than a mask of six pixels can have
        "6",
        b"6",
        6,
        None,
        {"0": 6},
    ],
)
def test_counts_that_are_no_mask_are_refused(counts: object) -> None:
    with pytest.raises(BadInput):
        from_uncompressed({"size": [2, 3], "counts": counts})


@pytest.mark.parametrize("read", [from_coco, from_uncompressed])
@pytest.mark.parametrize(
    "size", [[2], [2, 3, 1], [0, 3], [-2, -3], [2.0, 3.0], [True, 6], ["2", "3"], "23", None, 6, [2**70, 0]]
)
def test_sizes_that_are_no_frame_are_refused(read: Any, size: object) -> None:
    with pytest.raises(BadInput, match="size"):
        read({"size": size, "counts": "6" if read is from_coco else [6]})


@pytest.mark.parametrize("read", [from_coco, from_uncompressed])
def test_masks_beyond_the_pixel_limit_are_refused(read: Any) -> None:
    with pytest.raises(TooLarge, match="64000000"):
        read({"size": [8000, 8001], "counts": []})
    with pytest.raises(TooLarge):
        read({"size": [2**40, 2**40], "counts": []})


@pytest.mark.parametrize("value", [None, [], "x", {}, {"size": [2, 3]}, {"counts": "6"}])
@pytest.mark.parametrize("read", [from_coco, from_uncompressed])
def test_what_is_no_rle_is_refused(read: Any, value: object) -> None:
    with pytest.raises(BadInput, match="an RLE is"):
        read(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",  # 5 of 6 pixels
        "o",  # -1, were a group to follow
        "V",  # its number goes on behind the end
        "6V",
        "6\0",
        "\x006",
        "6/",
        "6p",
        "é",
        "\ud800",
        "VVVVVVVV1",  # 40 bits
        "__",
        "6O7",  # 6, -1, 7
        "XXXXXXX",
        6,
        None,
        [6],
    ],
)
def test_strings_that_are_no_mask_are_refused(text: object) -> None:
    with pytest.raises(BadInput):
        from_coco({"size": [2, 3], "counts": text})


def test_counts_as_bytes_are_read_as_pycocotools_gives_them() -> None:
    assert from_coco(coco(RING)) == encode(RING)


@given(st.text(st.characters(min_codepoint=48, max_codepoint=111), max_size=12), sides, sides)
@settings(max_examples=500, deadline=None)
def test_any_string_is_refused_or_a_mask_of_its_size(text: str, height: int, width: int) -> None:
    try:
        rle = from_coco({"size": [height, width], "counts": text})
    except BadInput:
        return
    assert rle.decode().shape == (height, width)
    assert rle == encode(rle.decode())
    assert rle.area == coco_mask.area({"size": [height, width], "counts": text.encode()})


def test_the_largest_frame_is_not_spread_out_for_its_area_and_boxes() -> None:
    region = blobs(300, 300)
    rle = encode_region(region, 7000, 7600, 8000, 8000)

    def request() -> None:
        encode_region(region, 7000, 7600, 8000, 8000)
        assert rle.area == region.sum()
        assert rle.box_xyxy[2] >= 7600
        assert iou(rle, rle) == 1.0
        assert encode(region).shifted(7000, 7600, 8000, 8000) == rle

    request()
    assert peak_growth_bytes(request) < 16_000_000  # the frame has 64 million pixels


def test_the_largest_frame_keeps_its_last_pixels() -> None:
    rle = encode_region(np.ones((1, 1), np.bool_), 7999, 7999, 8000, 8000)
    assert rle.counts.tolist() == [63_999_999, 1]
    assert rle.box_xyxy == (7999, 7999, 7999, 7999)
    assert Rle(8000, 8000, np.array([0, 64_000_000], np.uint32)).area == 64_000_000


def test_a_long_text_among_the_counts_takes_no_memory() -> None:
    """As an array of numpy each count would be as long as the text."""
    counts = [1] * 999_999 + ["x" * 100_000]

    def read() -> None:
        with pytest.raises(BadInput, match="list of whole numbers"):
            from_uncompressed({"size": [1000, 1000], "counts": counts})

    assert peak_growth_bytes(read) < 64 << 20


def test_other_threads_run_while_counts_are_read() -> None:
    counts = [1] * 4_000_000
    turns = 0
    done = threading.Event()

    def read() -> None:
        from_uncompressed({"size": [2000, 2000], "counts": counts})
        done.set()

    thread = threading.Thread(target=read)
    thread.start()
    while not done.wait(0.001):
        turns += 1
    thread.join()
    assert turns >= 3


def test_compressed_counts_that_are_read_in_pieces() -> None:
    """More numbers than one piece, of one to seven groups."""
    random = np.random.default_rng(0)
    mask = np.repeat(random.random((1200, 600)) > 0.5, random.integers(1, 12, 600), axis=1)
    rle = encode(mask)
    assert len(rle.counts) > 1 << 17
    assert from_coco(to_coco(rle)) == rle
    assert from_uncompressed(uncompressed(rle)) == rle
    assert np.array_equal(rle.decode(), mask)
