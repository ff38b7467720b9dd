"""Bodies: what a form means, and that nothing but a refusal leaves the parser."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ekiben.errors import BadInput
from services.archives.filenames import clean_filename
from services.rest.uploads.multipart import parse_form


def form(**parts: object) -> tuple[bytes, bytes]:
    """A body as a real client builds it, and its boundary."""
    request = httpx.Request("POST", "http://x", files=parts)  # type: ignore[arg-type]
    boundary = request.headers["content-type"].split("boundary=")[1]
    return request.read(), boundary.encode()


@given(data=st.binary(max_size=5000), text=st.text(max_size=50))
def test_a_file_comes_through_byte_for_byte(data: bytes, text: str) -> None:
    body, boundary = form(file=("x.png", data), model=(None, text.encode()))
    upload = parse_form(body, boundary, "file")
    assert upload.data == data
    assert upload.fields == {"model": text}
    assert upload.is_file


@given(garbage=st.binary(max_size=2000))
def test_garbage_is_refused(garbage: bytes) -> None:
    try:
        upload = parse_form(garbage, b"x", "file")
    except BadInput:
        return
    assert upload.data is None or isinstance(upload.data, bytes)


@given(data=st.binary(min_size=1, max_size=600), cut=st.integers(min_value=0, max_value=600))
def test_a_truncated_form_is_refused(data: bytes, cut: int) -> None:
    body, boundary = form(file=("x.png", data))
    kept = body[: min(cut, len(body) - 6)]
    with pytest.raises(BadInput):
        parse_form(kept, boundary, "file")


def test_text_fields_may_come_as_files() -> None:
    body, boundary = form(file=("m.onnx", b"1"), labels=("labels.txt", b"a\nb"))
    with pytest.raises(BadInput, match="'labels'"):
        parse_form(body, boundary, "file")
    assert parse_form(body, boundary, "file", frozenset({"labels"})).fields == {"labels": "a\nb"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("photo.jpg", "photo.jpg"),
        ("C:\\Users\\me\\photo.jpg", "photo.jpg"),
        ("../../etc/passwd", "passwd"),
        ("a\0b\n.png", "ab.png"),
        ("山.png", "山.png"),
        ("x" * 300, "x" * 255),
        ("dir/", None),
        ("", None),
        (None, None),
    ],
)
def test_file_names(given: str | None, kept: str | None) -> None:
    assert clean_filename(given) == kept
