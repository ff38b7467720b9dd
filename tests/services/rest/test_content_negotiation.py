"""The Accept header: who would rather have a file."""

from __future__ import annotations

import pytest

from services.rest.content_negotiation import prefers

ZIP = "application/zip"


@pytest.mark.parametrize(
    "accept",
    [
        "application/zip",
        "application/zip, */*",
        "application/zip, application/json",
        "text/html, application/zip;q=0.9, application/json",
        " application/zip ; q=1.0",
        "application/zip;q=0.001",
        "application/json;q=0, application/zip",
        "Application/ZIP",
    ],
)
def test_who_wants_the_file(accept: str) -> None:
    assert prefers(accept, ZIP)


@pytest.mark.parametrize(
    "accept",
    [
        "",
        "*/*",
        "application/json",
        "application/json, application/zip",
        "*/*, application/zip",
        "text/html",
        "application/zipx",
        "application/*",
        ",;,;;",
        "application/zip;q=0",
        "application/zip; q=0.0",
        "application/zip;q=0.00",
        "application/zip;q=0.000",
        "application/zip;Q=0",
        "image/png, application/json;q=0.1, application/zip",
    ],
)
def test_who_wants_json(accept: str) -> None:
    assert not prefers(accept, ZIP)


def test_a_header_of_any_length() -> None:
    assert not prefers("," * 100_000, ZIP)
    assert prefers("x/y," * 20_000 + ZIP, ZIP)
