"""A compressed body is not an image that is damaged: the encoding is named."""

from __future__ import annotations

import gzip
from typing import Any

import httpx
import pytest

from ekiben.errors import UnsupportedEncoding
from services.rest.app import create_app
from services.rest.uploads.multipart import parse_form
from tests import toy_models
from tests.services.rest.test_bento_endpoints import Run, run, template

__all__ = ["run", "template"]

ENCODINGS = {
    "gzip": "gzip",
    "deflate": "deflate",
    "br": "br",
    "zstd": "zstd",
    "GZip": "gzip",
    "x-gzip": "x-gzip",
    "identity, gzip": "gzip",
    "gzip, br": "gzip",
}


def routes_with_a_body() -> list[str]:
    paths: dict[str, Any] = create_app().openapi()["paths"]
    return [path for path, methods in paths.items() if "requestBody" in methods.get("post", {})]


def test_every_route_that_reads_a_body_names_the_encoding(run: Run) -> None:
    routes = [path for path in routes_with_a_body() if not path.startswith("/v2/")]
    assert len(routes) > 12

    async def main(_: Any, client: httpx.AsyncClient) -> None:
        for route in routes:
            path = route.replace("{name}", "colours")
            for kind in ("image/png", "application/json", "application/zip", "multipart/form-data; boundary=x"):
                for encoding, named in ENCODINGS.items():
                    headers = {"content-type": kind, "content-encoding": encoding}
                    answer = await client.post(path, content=gzip.compress(b"{}"), headers=headers)
                    if answer.status_code == 400 and "send a multipart form" in answer.text:
                        assert kind in ("image/png", "application/json", "application/zip")  # another type of body
                        continue
                    assert answer.status_code == 415, (route, kind, encoding, answer.text)
                    error = answer.json()["error"]
                    assert error["code"] == "unsupported_encoding"
                    assert f"'{named}'" in error["message"]
                    assert "identity" in error["message"]
                    assert answer.headers["accept-encoding"] == "identity"

    run(main)


def test_a_body_as_it_is_may_say_so(run: Run) -> None:
    png = toy_models.encoded(toy_models.noise(64, 48))

    async def main(_: Any, client: httpx.AsyncClient) -> None:
        for encoding in ("identity", "", "Identity"):
            headers = {"content-type": "image/png", "content-encoding": encoding}
            answer = await client.post("/v1/classify?model=colours", content=png, headers=headers)
            assert answer.status_code == 200, answer.text

    run(main)


@pytest.mark.parametrize(
    ("header", "named"),
    [
        ("Content-Transfer-Encoding: base64", "base64"),
        ("content-transfer-encoding: Quoted-Printable", "quoted-printable"),
        ("Content-Encoding: gzip", "gzip"),
    ],
)
def test_a_part_of_a_form_too(header: str, named: str) -> None:
    body = f'--x\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n{header}\r\n\r\n1\r\n--x--\r\n'
    with pytest.raises(UnsupportedEncoding, match=f"'{named}'.*identity"):
        parse_form(body.encode(), b"x", "file")


@pytest.mark.parametrize("encoding", ["binary", "8bit", "7bit", "BINARY"])
def test_a_part_that_comes_as_it_is(encoding: str) -> None:
    head = f'Content-Disposition: form-data; name="file"; filename="f"\r\nContent-Transfer-Encoding: {encoding}'
    assert parse_form(f"--x\r\n{head}\r\n\r\n1\r\n--x--\r\n".encode(), b"x", "file").data == b"1"
