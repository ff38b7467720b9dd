"""Frames between gateway and runner: what goes in comes out, and refusals keep their kind."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ekiben.errors import REFUSALS, Overloaded, Refusal, Temporary, Unavailable
from models.asks import Answer, Ask
from models.engine import ModelKey, ModelState
from models.results import ClassArea, ClassScore, PictureFacts, Timing
from services import frames
from services.runner import Answered

KEY = ModelKey("local", "areas", 3)


@given(image=st.binary(max_size=3000), top_k=st.integers(1, 1000))
def test_asks(image: bytes, top_k: int) -> None:
    ask = Ask(image, top_k, ("mask", "overlay"))
    assert frames.decode_ask(frames.encode_ask(KEY, ask)) == (KEY, ask)


@given(one=st.binary(max_size=3000), two=st.binary(max_size=3000), confidence=st.floats(0, 1))
def test_answers(one: bytes, two: bytes, confidence: float) -> None:
    answer = Answer(
        PictureFacts(640, 480, "image/jpeg"),
        (ClassScore(3, "bird", confidence),),
        (ClassArea(1, "sky", (1, 2, 3), 10, 0.5),),
        {"mask": one, "overlay": two},
    )
    answered = Answered(answer, Timing(0.5, 7.25, 4))
    assert frames.decode_answer(frames.encode_answer(answered)) == answered


def test_states() -> None:
    states = [ModelState(KEY, "ready", "", 5, True, 2), ModelState(KEY, "failed", "why")]
    assert frames.decode_states(frames.encode_states(states)) == states


@pytest.mark.parametrize("kind", list(REFUSALS.values()))
def test_refusals(kind: type[Refusal]) -> None:
    error = kind("a reason", code="special")
    if isinstance(error, Temporary):
        error.retry_after_s = 7
    back = frames.decode_refusal(frames.encode_refusal(error))
    assert type(back) is kind
    assert (back.message, back.code) == ("a reason", "special")
    if isinstance(back, Temporary):
        assert back.retry_after_s == 7


def test_what_is_no_refusal_says_nothing_of_the_inside() -> None:
    for data in (b"", b"Traceback ...", b'{"kind": "KeyError", "message": "secret"}', b"[1]"):
        back = frames.decode_refusal(data)
        assert type(back) is Unavailable
        assert "secret" not in back.message


@given(data=st.binary(max_size=200))
def test_bytes_that_are_no_frame(data: bytes) -> None:
    try:
        header, parts = frames.unframe(data)
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    assert frames.unframe(frames.frame(header, *parts)) == (header, parts)


def test_a_refusal_of_every_kind_has_a_status() -> None:
    from services.errors import STATUS, status_of

    assert {status_of(kind("x")) for kind in REFUSALS.values()} >= {400, 404, 409, 413, 415, 499, 503, 504}
    assert status_of(Overloaded("x")) == 503
    # A row that stands behind its parent would never be reached.
    seen: list[type[Refusal]] = []
    for kind, _ in STATUS:
        assert not any(issubclass(kind, earlier) for earlier in seen), kind
        seen.append(kind)
