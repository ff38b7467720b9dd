"""Reading a batch: whatever the chunks, every image comes once and in order, and nothing fills the memory."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from starlette.requests import Request

from ekiben.errors import BadInput, CallerLeft, Refusal, TooLarge
from services.rest.uploads import multipart
from services.rest.uploads.batch_upload import read_batch
from tests.services.rest.batch_upload.bodies import (
    FIELDS,
    FOLDER,
    MANY,
    PARTS,
    WANTED,
    Taken,
    form,
    limit_images,
    pieces,
    read,
    read_form,
    request,
    text,
    zipped,
)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 300, 10**6])
def test_the_chunks_of_a_form_may_end_anywhere(size: int) -> None:
    body, kind = form(*PARTS)
    assert read(request(pieces(body, size), kind)) == (FIELDS, WANTED)


@examples(max_examples=25)
@given(cuts=st.lists(st.integers(0, 3000), max_size=30), files=st.lists(st.binary(max_size=300), max_size=6))
def test_any_files_in_any_chunks(cuts: list[int], files: list[bytes]) -> None:
    body, kind = form(("operation", text("x")), *(("files", (f"{n}", data)) for n, data in enumerate(files)))
    ends = sorted({0, *(cut for cut in cuts if cut < len(body)), len(body)})
    chunks = [body[start:end] for start, end in pairwise(ends)]
    fields, taken = read(request(chunks, kind))
    assert fields == {"operation": "x"}
    assert taken == [(data, str(number)) for number, data in enumerate(files)]


def test_images_are_taken_while_the_rest_is_on_its_way() -> None:
    body, kind = form(*PARTS)
    seen: list[int] = []
    taken: list[int] = []

    async def main() -> None:
        plain = request(pieces(body, 50), kind)
        receive = plain.receive

        async def counted() -> Any:
            seen.append(len(taken))
            return await receive()

        async def take(data: bytes | Refusal, filename: str | None) -> None:
            taken.append(1)

        await read_batch(Request(plain.scope, counted), MANY, take, FOLDER)

    asyncio.run(main())
    assert seen[0] == 0 and {1, 2, 3, 4} <= set(seen)


def test_an_image_that_is_too_large_is_refused_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_images(monkeypatch, 100)
    parts = [("files", ("a", b"x" * 100)), ("files", ("big", b"y" * 101)), ("files", ("c", b"z"))]
    body, kind = form(*parts)
    for size in (1, 33, 10**6):
        _, taken = read(request(pieces(body, size), kind))
        assert [name for _, name in taken] == ["a", "big", "c"]
        assert taken[0][0] == b"x" * 100 and taken[2][0] == b"z"
        assert isinstance(taken[1][0], TooLarge) and "100 bytes" in taken[1][0].message


def test_what_is_too_large_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_images(monkeypatch, 100_000)
    chunk = b"y" * 50_000
    head, kind = form(("files", ("big", b"@")), boundary="end")
    start, tail = head.split(b"@")

    async def main() -> tuple[Taken, int]:
        taken: Taken = []
        chunks = iter([start, *([chunk] * 400), tail])

        async def receive() -> dict[str, Any]:
            part = next(chunks, b"")
            return {"type": "http.request", "body": part, "more_body": bool(part)}

        async def take(data: bytes | Refusal, filename: str | None) -> None:
            taken.append((data, filename))

        scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", kind.encode())]}
        tracemalloc.start()
        try:
            await read_batch(Request(scope, receive), MANY, take, FOLDER)
            return taken, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    taken, peak = asyncio.run(main())
    assert len(taken) == 1 and isinstance(taken[0][0], TooLarge)
    assert peak < 2_000_000  # of 20 MB


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("photo.png", "photo.png"),
        ("C:\\Users\\me\\photo.png", "photo.png"),
        ("../../etc/passwd", "passwd"),
        ("größe 1.png", "größe 1.png"),
        ("x" * 300, "x" * 255),
    ],
)
def test_a_file_name_is_its_last_part(name: str, kept: str) -> None:
    _, [(data, filename)] = read_form(("files", (name, b"1")))
    assert (data, filename) == (b"1", kept)


def test_forms_that_are_refused() -> None:
    with pytest.raises(BadInput, match="twice"):
        read_form(("operation", text("a")), ("operation", text("b")))
    with pytest.raises(BadInput, match=r"'photos'.*'files'"):
        read_form(("photos", ("a.png", b"1")))
    with pytest.raises(BadInput, match="more than one 'archive'"):
        read_form(("archive", ("a.zip", zipped(("a", b"1")))), ("archive", ("b.zip", zipped(("b", b"1")))))
    with pytest.raises(BadInput, match="UTF-8"):
        read_form(("operation", (None, b"\xff\xfe")))


def test_a_long_field_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "MAX_FIELD", 1000)
    assert read_form(("parameters", text("x" * 1000)))[0] == {"parameters": "x" * 1000}
    with pytest.raises(TooLarge, match="'parameters'"):
        read_form(("parameters", text("x" * 1001)))


def test_fields_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """They stay in memory: many of them must not add up to the limit of a batch, which is gigabytes."""
    monkeypatch.setattr(multipart, "MAX_FIELD", 1000)
    body, kind = form(*((f"field{number}", text("x" * 1000)) for number in range(1000)))
    with pytest.raises(BadInput):
        read(request([body], kind))


def test_a_form_that_is_cut_off() -> None:
    body, kind = form(*PARTS)
    for end in (0, 1, 60, len(body) // 2, len(body) - 60, len(body) - 5):
        with pytest.raises(BadInput, match=r"cut off|malformed"):
            read(request([body[:end]], kind))
    with pytest.raises(CallerLeft):
        read(request([body[:200]], kind, cut=True))


@examples(max_examples=40)
@given(garbage=st.binary(max_size=400), head=st.integers(0, 400))
def test_a_malformed_form_is_a_refusal(garbage: bytes, head: int) -> None:
    body, _ = form(*PARTS, boundary="end")
    try:
        fields, _ = read(request([body[:head] + garbage], "multipart/form-data; boundary=end"))
    except Refusal:
        return
    assert set(fields) <= {"operation", "parameters", "store"} or garbage


def test_other_bodies() -> None:
    for kind in ("image/png", "text/plain", "", "multipart/form-data", "application/x-www-form-urlencoded"):
        with pytest.raises(BadInput, match="send a multipart form"):
            read(request([b"x"], kind))


def test_json() -> None:
    requested = {"operation": "classify", "image_ids": ["a", "b"], "parameters": {"top_k": 1}}
    body = orjson.dumps(requested)
    for kind in ("application/json", "application/json; charset=utf-8"):
        assert read(request(pieces(body, 5), kind)) == (requested, [])


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"1", b'"x"', b"null", b"\xff", b"[" * 5000])
def test_bad_json(body: bytes) -> None:
    with pytest.raises(BadInput, match="JSON"):
        read(request([body], "application/json"))


def test_an_error_of_the_consumer_ends_the_reading() -> None:
    body, kind = form(("files", ("a", b"1")), ("files", ("b", b"2")), ("archive", ("z", zipped(("c", b"3")))))
    stop_at: list[Callable[[int], bool]] = [lambda n: n == 1, lambda n: n == 3]
    for stop in stop_at:
        count = 0

        async def take(data: bytes | Refusal, filename: str | None, stop: Callable[[int], bool] = stop) -> None:
            nonlocal count
            count += 1
            if stop(count):
                raise BadInput("enough")

        with pytest.raises(BadInput, match="enough"):
            asyncio.run(read_batch(request([body], kind), MANY, take, FOLDER))
        assert stop(count)
