"""Bad input: each a clear 4xx in the one error shape, and nothing of it stays."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests import toy_models
from tests.serving import Server

PNG = toy_models.encoded(toy_models.noise(64, 48))
JPEG = toy_models.encoded(toy_models.noise(64, 48), "JPEG")
SCAN = JPEG[JPEG.index(b"\xff\xda") : -2]


def png_that_says(width: int, height: int) -> bytes:
    """A PNG whose header claims that size and which holds one compressed byte row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def gif() -> bytes:
    out = io.BytesIO()
    Image.new("P", (4, 4)).save(out, "GIF")
    return out.getvalue()


BODIES: dict[str, tuple[bytes, int, str, str]] = {
    "nothing": (b"", 400, "bad_request", "send an image"),
    "text": (b"hello, this is no image", 400, "bad_image", "not an image"),
    "random bytes": (bytes(range(256)) * 4, 400, "bad_image", "not an image"),
    "truncated JPEG": (JPEG[: len(JPEG) // 2], 400, "bad_image", "truncated"),
    "truncated PNG": (PNG[: len(PNG) // 2], 400, "bad_image", "image/png"),
    "JPEG of its magic alone": (b"\xff\xd8\xff\xe0", 400, "bad_image", "image/jpeg"),
    "zero-size PNG": (png_that_says(0, 5), 400, "bad_image", "image"),
    "GIF": (gif(), 415, "unsupported_image", "GIF"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "unsupported_image", "SVG"),
    "65 megapixels": (png_that_says(8_125, 8_001), 413, "too_large", "64000000"),
    "a decompression bomb": (png_that_says(60_000, 60_000), 413, "too_large", "pixels"),
    "a JPEG of 4,000 scans": (JPEG[:-2] + SCAN * 4000 + JPEG[-2:], 400, "bad_image", "scans"),
    "51 MB": (b"\xff\xd8\xff" + bytes(51 * 1024 * 1024), 413, "too_large", "52428800"),
}


def files_of(server: Server) -> set[Path]:
    return {p for p in (server.home / "blobs").rglob("*") if p.is_file() and "models" not in p.parts}


def counts(client: httpx.Client) -> tuple[int, int]:
    return client.get("/v1/predictions").json()["total"], client.get("/v1/images").json()["total"]


def check_error(answer: httpx.Response, status: int, code: str, words: str) -> None:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"code", "message", "request_id"}
    assert error["code"] == code
    assert words.lower() in error["message"].lower()
    assert error["request_id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("name", list(BODIES))
@pytest.mark.parametrize("path", ["/v1/classify?model=colours", "/v1/segment?model=areas", "/v1/images"])
@pytest.mark.parametrize("how", ["raw", "form"])
def test_bad_images(toy_server: Server, name: str, path: str, how: str) -> None:
    body, status, code, words = BODIES[name]
    if how == "form" and name == "nothing":
        code, words = "bad_image", "empty"
    with toy_server.client() as client:
        before, files = counts(client), files_of(toy_server)
        if how == "raw":
            answer = client.post(path, content=body, headers={"content-type": "image/jpeg"})
        else:
            answer = client.post(path, files={"file": ("x.jpg", body)})
        check_error(answer, status, code, words)
        assert counts(client) == before
        assert files_of(toy_server) == files


@pytest.mark.parametrize(
    ("method", "path", "status", "code", "words"),
    [
        ("POST", "/v1/classify?model=nope", 404, "not_found", "nope"),
        ("POST", "/v1/classify?model=areas", 400, "bad_request", "segment"),
        ("POST", "/v1/segment?model=colours", 400, "bad_request", "classify"),
        ("POST", "/v1/classify?model=colours&version=9", 404, "not_found", "9"),
        ("POST", "/v1/classify?model=colours&top_k=0", 400, "bad_request", "top_k"),
        ("POST", "/v1/classify?model=colours&top_k=5", 400, "bad_request", "4 classes"),
        ("POST", "/v1/classify?model=colours&top_k=many", 400, "bad_request", "top_k"),
        ("POST", "/v1/classify?model=colours&topk=2", 400, "bad_request", "no option topk"),
        ("POST", "/v1/classify?model=../../etc/passwd", 400, "bad_request", "model"),
        ("POST", "/v1/segment?model=areas&render=hologram", 400, "bad_request", "render"),
        ("GET", "/v1/classify", 405, "method_not_allowed", "Method"),
        ("PUT", "/v1/images", 405, "method_not_allowed", "Method"),
        ("GET", "/nothing/here", 404, "not_found", "/docs"),
        ("GET", "/v1/images/no-such-id", 404, "not_found", "no-such-id"),
        ("GET", "/v1/artifacts/no-such-id", 404, "not_found", "no-such-id"),
        ("GET", "/v1/predictions/no-such-id", 404, "not_found", "no-such-id"),
        ("DELETE", "/v1/predictions/no-such-id", 404, "not_found", "no-such-id"),
        ("GET", "/v1/predictions?page=0", 400, "bad_request", "page"),
        ("GET", "/v1/predictions?limit=100000", 400, "bad_request", "limit"),
        ("GET", "/v1/models/nope", 404, "not_found", "nope"),
        ("POST", "/v1/models/nope/load", 404, "not_found", "nope"),
    ],
)
def test_bad_questions(toy_server: Server, method: str, path: str, status: int, code: str, words: str) -> None:
    with toy_server.client() as client:
        before, files = counts(client), files_of(toy_server)
        answer = client.request(method, path, content=PNG if method == "POST" else None)
        check_error(answer, status, code, words)
        assert counts(client) == before
        assert files_of(toy_server) == files


def test_bad_forms(toy_server: Server) -> None:
    with toy_server.client() as client:
        kind = {"content-type": "multipart/form-data; boundary=x"}
        check_error(
            client.post("/v1/classify?model=colours", content=b"no form", headers=kind), 400, "bad_request", "form"
        )
        bare = {"content-type": "multipart/form-data"}
        check_error(
            client.post("/v1/classify?model=colours", content=PNG, headers=bare), 400, "bad_request", "boundary"
        )
        two = [("file", ("a.png", PNG)), ("file", ("b.png", PNG))]
        check_error(client.post("/v1/classify?model=colours", files=two), 400, "bad_request", "more than one")
        other = {"image": ("a.png", PNG)}
        check_error(client.post("/v1/classify?model=colours", files=other), 400, "bad_request", "'file'")
        contradiction = client.post("/v1/classify?model=colours", files={"file": PNG}, data={"model": "areas"})
        check_error(contradiction, 400, "bad_request", "twice")
        both = client.post("/v1/classify?model=colours&image_id=x", content=PNG)
        check_error(both, 400, "bad_request", "not both")
        missing = client.post("/v1/classify?model=colours&image_id=0190aaaa-0000-7000-8000-000000000000")
        check_error(missing, 404, "not_found", "0190aaaa")


def test_options_as_form_fields(toy_server: Server) -> None:
    red = toy_models.encoded(toy_models.solid((255, 0, 0)))
    with toy_server.client() as client:
        fields = {"model": "colours", "top_k": "2", "store": "false"}
        answer = client.post("/v1/classify", files={"file": ("red.png", red)}, data=fields)
        assert answer.status_code == 200, answer.text
        assert [p["class_name"] for p in answer.json()["predictions"]] == ["red", "dark"]
        assert answer.json()["id"] is None


def test_head_and_nul(toy_server: Server) -> None:
    with toy_server.client() as client:
        for path in ("/livez", "/readyz", "/v1/images", "/v1/models/colours"):
            answer = client.head(path)
            assert answer.status_code == 200, path
            assert answer.content == b""
        check_error(client.get("/v1/images/%00"), 400, "bad_request", "NUL")
        check_error(client.post("/v1/classify?model=%00", content=PNG), 400, "bad_request", "NUL")


def test_a_form_without_a_file(toy_server: Server) -> None:
    """curl -d image_id=...: the fields of an urlencoded body are options like the others."""
    with toy_server.client() as client:
        image = client.post("/v1/images", content=PNG).json()
        answer = client.post("/v1/classify", data={"model": "colours", "image_id": image["id"]})
        assert answer.status_code == 200, answer.text
        assert answer.json()["image"]["id"] == image["id"]
        curl = {"content-type": "application/x-www-form-urlencoded"}  # what --data-binary sends
        assert client.post("/v1/classify?model=colours", content=PNG, headers=curl).status_code == 200


def test_request_ids(toy_server: Server) -> None:
    with toy_server.client() as client:
        given = client.get("/livez", headers={"X-Request-ID": "my-id.1"})
        assert given.headers["x-request-id"] == "my-id.1"
        evil = client.get("/livez", headers={"X-Request-ID": "a b{}<script>"})
        assert evil.headers["x-request-id"] != "a b{}<script>"
        assert len({client.get("/livez").headers["x-request-id"] for _ in range(5)}) == 5


def test_an_unknown_path_is_no_label(toy_server: Server) -> None:
    with toy_server.client() as client:
        for n in range(20):
            client.get(f"/stranger-{n}")
            client.get(f"/v1/images/stranger-{n}")
            client.post(f"/v1/classify?model=stranger-{n}", content=PNG)
            client.request("STRANGE", "/livez")
        text = client.get("/metrics").text
        assert "stranger" not in text
        assert "STRANGE" not in text
        assert 'route="/v1/images/{id}"' in text
        assert 'route="unmatched"' in text
