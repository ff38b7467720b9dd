"""A request in parts that mutations may change, and its bytes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tests.fuzz import hostile


@dataclass
class Part:
    """One part of a form. ``filename`` None: a plain field."""

    name: str
    data: bytes
    filename: str | None = None
    headers: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Draft:
    """One HTTP request: at most one of ``parts``, ``tree`` (JSON) and ``raw`` is its body."""

    route: str
    method: str
    segments: list[str]
    query: list[tuple[str, str]] = field(default_factory=list)
    headers: list[tuple[str, str]] = field(default_factory=list)
    parts: list[Part] | None = None
    tree: Any = None
    has_tree: bool = False
    raw: bytes | None = None
    form_quirk: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Call:
    """What is sent. ``target``: the path of HTTP with its query, or the full name of a gRPC method."""

    index: int
    route: str
    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    notes: str = ""
    streams: bool = False


BOUNDARY = "fuzz7d93b1c2"


def call_of(draft: Draft, index: int, rng: random.Random) -> Call:
    """The bytes of ``draft``."""
    path = "/" + "/".join(_quoted(one) for one in draft.segments)
    query = "&".join(f"{_quoted(name)}={_quoted(value)}" for name, value in draft.query)
    headers = list(draft.headers)
    body = b""
    if draft.parts is not None:
        body = _form(draft)
        headers = _with(headers, "Content-Type", f"multipart/form-data; boundary={BOUNDARY}")
    elif draft.has_tree:
        body = hostile.text_of(draft.tree, rng)
        headers = _with(headers, "Content-Type", "application/json")
    elif draft.raw is not None:
        body = draft.raw
    encoded = tuple((_clean(name), _clean(value)) for name, value in headers)
    target = (path + ("?" + query if query else "")).encode()
    return Call(index, draft.route, draft.method, target, encoded, body, "; ".join(draft.notes))


def _quoted(text: str) -> str:
    """Percent-encoded; percent signs stay, and so do surrogates, which are no UTF-8."""
    return quote(text.encode("utf-8", "surrogatepass"), safe="%,")


def _with(headers: list[tuple[str, str]], name: str, value: str) -> list[tuple[str, str]]:
    present = any(one.lower() == name.lower() for one, _ in headers)
    return headers if present else [*headers, (name, value)]


def _clean(text: str) -> bytes:
    """Bytes that a header may carry: other tests send what is no HTTP."""
    data = text.encode("utf-8", "replace")[:4000]
    return bytes(b for b in data if b >= 32 and b != 127).strip()


def _form(draft: Draft) -> bytes:
    out = bytearray()
    end = b"\n" if draft.form_quirk == "bare newlines" else b"\r\n"
    if draft.form_quirk == "preamble":
        out += b"preamble" + end
    for part in draft.parts or ():
        name = part.name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        shown = f'form-data; name="{name}"' if draft.form_quirk != "no name" else "form-data"
        if part.filename is not None:
            given = part.filename.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
            shown += (
                f"; filename*=UTF-8''{_quoted(given)}" if draft.form_quirk == "filename*" else f'; filename="{given}"'
            )
        out += b"--" + BOUNDARY.encode() + end
        out += b"Content-Disposition: " + shown.encode("utf-8", "replace") + end
        for header, value in part.headers:
            out += _clean(header) + b": " + _clean(value) + end
        out += end + part.data + end
    if draft.form_quirk != "no end":
        out += b"--" + BOUNDARY.encode() + b"--" + end
    if draft.form_quirk == "epilogue":
        out += b"after" + end
    return bytes(out)


FORM_QUIRKS = ("bare newlines", "preamble", "no name", "filename*", "no end", "epilogue")
