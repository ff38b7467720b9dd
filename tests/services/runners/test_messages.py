"""Frames between gateway and runner: what goes in comes out, and refusals keep their kind."""

from __future__ import annotations

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ekiben.errors import REFUSALS, Overloaded, Refusal, Temporary, Unavailable
from models.engine.engine import ModelKey, ModelState
from models.inference_requests import (
    AutoMaskRequest,
    AutoMaskResponse,
    EmbeddingUse,
    InferenceRequest,
    InferenceResponse,
    MaskRequest,
    MaskResponse,
)
from models.masks.predicted_masks import AutoMask, PromptMask
from models.masks.rle import Rle, encode
from models.results import ClassArea, ClassScore, ImageInfo, Timing
from models.sam.auto_options import AutoOptions
from models.sam.prompts import Prompt
from services.runners import message_format, messages
from services.runners.interface import TimedAnswer

KEY = ModelKey("local", "areas", 3)


@given(image=st.binary(max_size=3000), top_k=st.integers(1, 1000))
def test_asks(image: bytes, top_k: int) -> None:
    request = InferenceRequest(image, top_k, ("mask", "overlay"))
    assert messages.decode_request(messages.encode_request(KEY, request)) == (KEY, request)


@given(one=st.binary(max_size=3000), two=st.binary(max_size=3000), confidence=st.floats(0, 1))
def test_answers(one: bytes, two: bytes, confidence: float) -> None:
    answer = InferenceResponse(
        ImageInfo(640, 480, "image/jpeg"),
        (ClassScore(3, "bird", confidence),),
        (ClassArea(1, "sky", (1, 2, 3), 10, 0.5),),
        {"mask": one, "overlay": two},
    )
    answered = TimedAnswer(answer, Timing(0.5, 7.25, 4))
    assert messages.decode_response(messages.encode_response(answered)) == answered


SAM = ModelKey("ann", "sam_vit_b", 2)
INFO = ImageInfo(9, 7, "image/webp")
SPENT = Timing(0.5, 7.25, 4)
USE = EmbeddingUse(True, 4321.5)

_coordinates = st.floats(allow_nan=False, allow_infinity=False)
_prompts = st.builds(
    Prompt,
    st.lists(st.tuples(_coordinates, _coordinates, st.integers(0, 1)), max_size=3).map(tuple),
    st.none() | st.tuples(_coordinates, _coordinates, _coordinates, _coordinates),
    st.none() | st.integers(0, 2**32 - 1),  # a seed; see with_mask
)


def logits(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 20, (256, 256)).astype(np.float32)


def with_mask(prompt: Prompt) -> Prompt:
    seed = prompt.mask_input
    return Prompt(prompt.points, prompt.box, logits(int(seed)) if seed is not None else None)


def alike(one: NDArray[np.float32] | None, two: NDArray[np.float32] | None) -> bool:
    if one is None or two is None:
        return one is two
    return one.dtype == two.dtype == np.float32 and one.shape == (256, 256) and np.array_equal(one, two, equal_nan=True)


def random_rle(seed: int) -> Rle:
    random = np.random.default_rng(seed)
    return encode(random.random((INFO.height, INFO.width)) < random.choice([0.0, 0.2, 0.8, 1.0]))


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=500), st.lists(_prompts, max_size=5), st.booleans(), st.booleans())
def test_mask_asks(image: bytes, prompts: list[Prompt], multimask: bool, keep_logits: bool) -> None:
    request = MaskRequest(image, tuple(with_mask(prompt) for prompt in prompts), multimask, keep_logits)
    key, back = messages.decode_mask_request(messages.encode_mask_request(SAM, request))
    assert key == SAM and type(key) is ModelKey
    assert (back.image, back.multimask, back.keep_logits) == (image, multimask, keep_logits)
    assert [(p.points, p.box) for p in back.prompts] == [(p.points, p.box) for p in request.prompts]
    assert len(back.prompts) == len(request.prompts)
    assert all(alike(a.mask_input, b.mask_input) for a, b in zip(back.prompts, request.prompts, strict=True))
    assert all(type(label) is int for prompt in back.prompts for _, _, label in prompt.points)


def test_a_mask_input_in_another_order_of_memory() -> None:
    turned = np.asfortranarray(logits(1))
    doubled = logits(2).repeat(2, axis=1)[:, ::2]
    wide = logits(3).astype(np.float64)
    prompts = tuple(Prompt(mask_input=one) for one in (turned, doubled, wide))  # type: ignore[arg-type]
    _, back = messages.decode_mask_request(messages.encode_mask_request(SAM, MaskRequest(b"", prompts)))
    for number, prompt in enumerate(back.prompts, 1):
        assert alike(prompt.mask_input, logits(number))


_masks = st.tuples(st.integers(0, 2**32 - 1), st.floats(-10, 10), st.none() | st.floats(0, 1), st.booleans())


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(_masks, max_size=3), max_size=4))
def test_mask_answers(rows: list[list[tuple[int, float, float | None, bool]]]) -> None:
    results = tuple(
        tuple(
            PromptMask(random_rle(seed), iou, stability, logits(seed) if kept else None)
            for seed, iou, stability, kept in row
        )
        for row in rows
    )
    answer, timing = messages.decode_mask_response(
        messages.encode_mask_response(MaskResponse(INFO, USE, results), SPENT)
    )
    assert (answer.image, answer.embedding, timing) == (INFO, USE, SPENT)
    assert [len(row) for row in answer.results] == [len(row) for row in results]
    for one, two in zip(sum(answer.results, ()), sum(results, ()), strict=True):
        assert one.rle == two.rle and one.rle.counts.dtype == np.uint32
        assert np.array_equal(one.rle.decode(), two.rle.decode())
        assert (one.predicted_iou, one.stability_score) == (two.predicted_iou, two.stability_score)
        assert alike(one.logits, two.logits)


def test_logits_that_are_no_rows_of_their_own() -> None:
    cut = np.stack([logits(1), logits(2)], axis=-1)[..., 1]
    row = (PromptMask(random_rle(1), 0.5, None, cut), PromptMask(random_rle(2), 0.5, 1.0, None))
    answer, _ = messages.decode_mask_response(messages.encode_mask_response(MaskResponse(INFO, USE, (row,)), SPENT))
    assert alike(answer.results[0][0].logits, logits(2)) and answer.results[0][1].logits is None


@pytest.mark.parametrize(
    "options",
    [
        AutoOptions(),
        AutoOptions(preset="dense"),
        AutoOptions(points_per_side=3, crop_n_layers=1, pred_iou_thresh=0.1, stability_score_offset=0.3),
    ],
    ids=str,
)
def test_auto_asks(options: AutoOptions) -> None:
    key, back = messages.decode_auto_mask_request(
        messages.encode_auto_mask_request(SAM, AutoMaskRequest(b"image", options))
    )
    assert (key, back.image, back.options.parameters) == (SAM, b"image", options.parameters)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.floats(-10, 10), st.none() | st.floats(0, 1)), max_size=5))
def test_auto_answers(rows: list[tuple[int, float, float | None]]) -> None:
    masks = tuple(
        AutoMask(random_rle(seed), iou, stability, (seed / 7, iou), (0, 1, seed % 9, 7))
        for seed, iou, stability in rows
    )
    given = AutoMaskResponse(INFO, USE, masks)
    assert messages.decode_auto_mask_response(messages.encode_auto_mask_response(given, SPENT)) == (given, SPENT)


def test_a_large_answer_is_not_much_larger_than_its_runs() -> None:
    rle = encode(np.random.default_rng(0).random((400, 300)) < 0.5)
    info = ImageInfo(300, 400, "image/png")
    mask = AutoMask(rle, 0.9, 0.9, (1.0, 2.0), (0, 0, 300, 400))
    data = messages.encode_auto_mask_response(AutoMaskResponse(info, USE, (mask,) * 20), SPENT)
    assert 20 * rle.counts.nbytes < len(data) < 20 * rle.counts.nbytes + 2500
    answer, _ = messages.decode_auto_mask_response(data)
    assert answer.masks == (mask,) * 20


def test_states() -> None:
    states = [ModelState(KEY, "ready", "", 5, True, 2), ModelState(KEY, "failed", "why")]
    assert messages.decode_states(messages.encode_states(states)) == states


@pytest.mark.parametrize("kind", list(REFUSALS.values()))
def test_refusals(kind: type[Refusal]) -> None:
    error = kind("a reason", code="special")
    if isinstance(error, Temporary):
        error.retry_after_s = 7
    back = messages.decode_refusal(messages.encode_refusal(error))
    assert type(back) is kind
    assert (back.message, back.code) == ("a reason", "special")
    if isinstance(back, Temporary):
        assert back.retry_after_s == 7


def test_what_is_no_refusal_says_nothing_of_the_inside() -> None:
    for data in (b"", b"Traceback ...", b'{"kind": "KeyError", "message": "secret"}', b"[1]"):
        back = messages.decode_refusal(data)
        assert type(back) is Unavailable
        assert "secret" not in back.message


@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_frame(data: bytes) -> None:
    try:
        header, parts = message_format.unpack_message(data)
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    assert message_format.unpack_message(message_format.pack_message(header, *parts)) == (header, parts)


def test_a_refusal_of_every_kind_has_a_status() -> None:
    from services.error_codes import STATUS, status_of

    assert {status_of(kind("x")) for kind in REFUSALS.values()} >= {400, 404, 409, 413, 415, 499, 501, 503, 504}
    assert status_of(Overloaded("x")) == 503
    # A row that stands behind its parent would never be reached.
    seen: list[type[Refusal]] = []
    for kind, _, code in STATUS:
        assert code in grpc.StatusCode.__members__
        assert not any(issubclass(kind, earlier) for earlier in seen), kind
        seen.append(kind)
