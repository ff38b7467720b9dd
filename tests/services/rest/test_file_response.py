"""Stored files over HTTP: whole, in ranges, not modified, redirected, and absent."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from db.folder_store import FolderStore
from services.rest.error_handlers import install_error_handlers
from services.rest.file_response import file_response

KEY = "images/a.png"
DATA = bytes(range(256)) * 1000
SHA256 = hashlib.sha256(DATA).hexdigest()
ETAG = f'"{SHA256}"'

Get = Callable[..., httpx.Response]


class Presigning(FolderStore):
    """A store whose files are fetched elsewhere."""

    def presigned_url(self, key: str, expires_s: int, *, mime_type: str | None = None) -> str:  # type: ignore[override]
        return f"https://store.example/{key}?expires={expires_s}&type={mime_type}"


class Far(FolderStore):
    """A store that has neither files of this machine nor URLs."""

    def local_path(self, key: str) -> Path | None:  # type: ignore[override]
        return None


def getting(store: FolderStore, key: str = KEY, *, removed: bool = False) -> Get:
    async def endpoint(request: Request) -> Response:
        response = await file_response(request, store, key, "image/png", SHA256, len(DATA))
        if removed:
            store.delete(key)
        return response

    def get(method: str = "GET", **headers: str) -> httpx.Response:
        async def ask() -> httpx.Response:
            app = FastAPI(routes=[Route("/file", endpoint, methods=["GET"])])
            install_error_handlers(app)
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
                named = {name.replace("_", "-"): value for name, value in headers.items()}
                return await client.request(method, "/file", headers=named)

        return asyncio.run(ask())

    return get


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[Callable[[type[FolderStore]], FolderStore]]:
    store = FolderStore(tmp_path)
    store.put(KEY, DATA, "image/png")
    yield lambda kind: kind(tmp_path)


Stored = Callable[[type[FolderStore]], FolderStore]


@pytest.mark.parametrize("kind", [FolderStore, Far])
def test_a_file_whole(kind: type[FolderStore], stored: Stored) -> None:
    answer = getting(stored(kind))()
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-length"] == str(len(DATA))
    assert answer.headers["etag"] == ETAG
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_head_of_a_file(stored: Stored) -> None:
    answer = getting(stored(FolderStore))("HEAD")
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", str(len(DATA)))


@pytest.mark.parametrize(
    ("asked", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-299", 100, 300),
        ("bytes=255000-", 255_000, 256_000),
        ("bytes=-7", 255_993, 256_000),
        ("bytes=255990-999999", 255_990, 256_000),
    ],
)
def test_a_range(asked: str, start: int, stop: int, stored: Stored) -> None:
    answer = getting(stored(FolderStore))(range=asked)
    assert (answer.status_code, answer.content) == (206, DATA[start:stop])
    assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{len(DATA)}"
    assert answer.headers["etag"] == ETAG


def test_a_range_of_another_file_is_the_whole(stored: Stored) -> None:
    """If-Range: the part is wanted of the file that the caller has begun."""
    get = getting(stored(FolderStore))
    assert get(range="bytes=5-6", if_range=ETAG).content == DATA[5:7]
    whole = get(range="bytes=5-6", if_range='"another"')
    assert (whole.status_code, len(whole.content)) == (200, len(DATA))


def test_a_range_beyond_the_end_is_refused(stored: Stored) -> None:
    answer = getting(stored(FolderStore))(range="bytes=256000-")
    assert answer.status_code == 416
    assert f"*/{len(DATA)}" in answer.headers["content-range"]


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ("bytes=256000-", 416, "range_not_satisfiable"),
        ("bytes=5-2", 400, "bad_request"),
        ("lines=1-2", 400, "bad_request"),
        ("bytes=", 400, "bad_request"),
    ],
)
def test_a_refused_range_has_the_shape_of_all_errors(asked: str, status: int, code: str, stored: Stored) -> None:
    answer = getting(stored(FolderStore))(range=asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("asked", [None, "bytes=100-299", "bytes=0-9,100-199"])
def test_a_file_that_is_removed_meanwhile_is_sent_whole(asked: str | None, stored: Stored) -> None:
    """It is removed after the route has found it, and before a byte was sent."""
    store = stored(FolderStore)
    before = getting(store)(**({"range": asked} if asked else {}))

    answer = getting(store, removed=True)(**({"range": asked} if asked else {}))
    assert not store.exists(KEY)
    assert (answer.status_code, len(answer.content)) == (before.status_code, len(before.content))
    if not (asked and "," in asked):  # several ranges have a boundary of their own each time
        assert answer.content == before.content


@pytest.mark.parametrize("known", [ETAG, f"W/{ETAG}", f'"another", {ETAG}', f'W/"another",W/{ETAG} ', "*"])
@pytest.mark.parametrize("kind", [FolderStore, Presigning, Far])
def test_who_has_the_file_is_not_sent_it_again(kind: type[FolderStore], known: str, stored: Stored) -> None:
    answer = getting(stored(kind))(if_none_match=known)
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", ETAG)
    assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"


@pytest.mark.parametrize("known", ["", '"another"', SHA256, f'"{SHA256[:-1]}"', f'"{SHA256.upper()}"'])
def test_another_tag_is_not_the_file(known: str, stored: Stored) -> None:
    assert getting(stored(FolderStore))(if_none_match=known).content == DATA


def test_a_store_with_urls_is_asked_there(stored: Stored) -> None:
    """Cached for half of the five minutes that the URL is valid."""
    answer = getting(stored(Presigning))()
    assert (answer.status_code, answer.content) == (302, b"")
    assert answer.headers["location"] == f"https://store.example/{KEY}?expires=300&type=image/png"
    assert (answer.headers["cache-control"], answer.headers["etag"]) == ("private, max-age=150", ETAG)


@pytest.mark.parametrize("kind", [FolderStore, Far])
def test_a_file_that_is_gone_is_not_found_before_the_answer_begins(kind: type[FolderStore], stored: Stored) -> None:
    answer = getting(stored(kind), "images/gone.png")()
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
