"""What the event loop parses takes time in proportion to its length, and the worst of it a small part of a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import FileResponse

from ekiben.errors import Refusal
from services.open_inference.http_codec import chosen_encoding
from services.rest.async_requests import idempotency_key, wants_job
from services.rest.content_negotiation import prefers
from services.rest.query_options import MAX_OPTIONS, gather
from services.rest.uploads.image_upload import parse_options_header
from services.rest.uploads.multipart import FormReader, ImagesSink, parse_form
from services.rest.uploads.request_body import read_json_object
from services.schemas.inference import ClassifyOptions
from services.schemas.validation import check, parse_json

SIZE = 64_000
"""Bytes: what all headers of a request may have together."""

MOST_S = 0.3
"""Seconds of this thread. What was found quadratic took 1.8 to 36 s; what is linear takes at most 0.06 s."""


def header(name: str, value: str) -> Request:
    raw = [(name.encode(), value.encode("latin-1"))]
    return Request({"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": raw})


def head_of_a_part(line: str) -> bytes:
    return f"--x\r\nContent-Disposition: form-data; {line}\r\n\r\n1\r\n--x--\r\n".encode()


def body_of_a_part(data: str) -> bytes:
    return f'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n{data}\r\n--x--\r\n'.encode()


def form(body: bytes) -> Any:
    return parse_form(body, b"x", "file")


def ranges(text: str) -> Any:
    return FileResponse._parse_range_header("bytes=" + text, 10**9)


PARSERS: dict[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
    "Prefer": (
        lambda text: wants_job(header("prefer", text)),
        ('\\"', '"', '"\\', "\\", ",", ";", "a=,", '="",', 'respond-async ="" '),
    ),
    "Prefer after a quote": (lambda text: wants_job(header("prefer", '"' + text)), ('\\"', "\\\\", "a", '",')),
    "Accept": (lambda text: prefers(text, "image/png"), (",", ";", "a/b;q=0,", '"', " ")),
    "Accept-Encoding": (chosen_encoding, (",", ";", ",;", "gzip;q=0,", " ")),
    "Idempotency-Key": (lambda text: idempotency_key(header("idempotency-key", text)), ("a", "\x7f", " ")),
    "Content-Type": (
        lambda text: parse_options_header("multipart/form-data;" + text),
        (";", '";', '\\";', ';a="b";', 'a="\\', '"', "=", ' ;"', ";*="),
    ),
    "Range": (ranges, (",", "-", "0-0,", "-1,", "9", "1-2-3,")),
    "query": (
        lambda text: gather(QueryParams(text)),
        ("&", "=", "a=&", "%41", "%", "+", ";"),
    ),
    "JSON": (
        lambda text: read_json_object(b'{"a":' + text.encode()),
        ("[", '{"a":', '"', "\\", "1,", '["\\u0000",'),
    ),
    "JSON option": (lambda text: parse_json("prompts", text), ("[", '{"a":', "1", "-", " ")),
    "header of a part": (lambda text: form(head_of_a_part(text)), ('name="a";', ";", '\\";', '"', "a", "\r\na: b")),
    "body of a part": (lambda text: form(body_of_a_part(text)), ("\r", "\n", "\r\n-", "\r\n--", "--x", "\r\n--x ")),
    "boundary": (lambda text: parse_form(body_of_a_part("1"), text.encode(), "file"), ("x", "-", "\r\n--")),
}


def seconds(parser: Callable[[str], Any], text: str) -> float:
    best = 60.0
    for _ in range(3):
        begun = time.thread_time()
        try:
            parser(text)
        except (Refusal, ValueError):
            pass
        except Exception as error:
            assert type(error).__module__.startswith("starlette"), error  # its own 400 and 416
        best = min(best, time.thread_time() - begun)
    return best


@pytest.mark.parametrize("name", list(PARSERS))
def test_no_parser_takes_long_over_anything(name: str) -> None:
    parser, pieces = PARSERS[name]
    for piece in pieces:
        short, long = (seconds(parser, piece * (size // len(piece))) for size in (SIZE // 8, SIZE))
        assert long < MOST_S, (piece, short, long)
        assert long < 24 * max(short, 0.002), (piece, short, long)  # linear: 8 times; quadratic: 64 times


@pytest.mark.parametrize("line", ['"', '"\\', 'a="b, respond-async', '"\\", respond-async, "'])
def test_what_an_unclosed_quote_holds_asks_for_nothing(line: str) -> None:
    assert not wants_job(header("prefer", line))
    assert wants_job(header("prefer", "respond-async, " + line))


def test_many_names_in_a_query() -> None:
    names = "&".join(f"{n:x}=" for n in range(10_000))
    assert seconds(lambda text: gather(QueryParams(text)), names) < MOST_S
    with pytest.raises(Refusal, match=f"more than {MAX_OPTIONS}"):
        gather(QueryParams(names))


def test_a_boundary_that_is_too_long_is_the_caller_s_mistake() -> None:
    with pytest.raises(Refusal, match="Boundary length"):
        parse_form(b"", b"b" * 300, "file")


def test_json_nested_as_deep_as_it_is_read() -> None:
    deep = b"[" * 1000 + b'"\\u0000"' + b"]" * 1000
    with pytest.raises(Refusal, match="NUL"):
        read_json_object(b'{"a":' + deep + b"}")
    with pytest.raises(Refusal, match="top_k") as caught:
        check(ClassifyOptions, {"top_k": parse_json("top_k", deep)})
    assert len(caught.value.message) < 400


def test_the_bytes_held_by_a_form_are_counted_and_not_summed_up() -> None:
    """They are asked for with every piece that arrives."""
    sink = ImagesSink()
    reader = FormReader(b"x", {"file": sink})
    reader.feed(body_of_a_part("")[:-9])
    for _ in range(3):
        reader.feed(b"a" * 10)
    assert reader.held == 30
    before = seconds(lambda _: [sink.held for _ in range(1000)], "")
    for _ in range(20_000):
        reader.feed(b"a")
    assert reader.held == 20_030
    assert seconds(lambda _: [sink.held for _ in range(1000)], "") < 100 * max(before, 0.0005)
