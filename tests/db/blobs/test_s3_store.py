"""What only a bucket has: credentials, addresses, and a server that goes away."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from db.blobs import open_store
from db.s3_store import S3Store
from ekiben.errors import BadInput, Refusal, Unavailable
from tests.servers import Server, free_port, rclone_s3


def fetch(url: str) -> tuple[bytes, dict[str, str]]:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read(), {name.lower(): value for name, value in answer.headers.items()}


def test_s3_address_for_a_browser(s3_server: Server, key: str) -> None:
    store = open_store(s3_server.url, s3_server.access_key, s3_server.secret_key)
    store.put(key, b"image", "image/jpeg")
    url = store.presigned_url(key, 60, filename='maß "1".jpg', mime_type="image/x-test")
    assert url is not None
    assert fetch(url)[0] == b"image"
    assert "response-content-type=image%2Fx-test" in url
    assert "attachment%3B%20filename%3D%22ma_%20_1_.jpg%22%3B%20filename%2A%3DUTF-8%27%27ma%25C3%259F" in url
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(url.replace(key, key.replace("images", "artifacts")))  # signed for another key
    assert refused.value.code in (400, 401, 403)
    soon = store.presigned_url(key, 1)
    assert soon is not None
    time.sleep(2.1)
    with pytest.raises(urllib.error.HTTPError) as refused:
        fetch(soon)
    assert refused.value.code in (400, 401, 403)
    for expires_s in (0, 8 * 24 * 3600):
        with pytest.raises(BadInput):
            store.presigned_url(key, expires_s)
    assert store.local_path(key) is None


def test_s3_keeps_the_type(s3_server: Server, key: str) -> None:
    store = open_store(s3_server.url, s3_server.access_key, s3_server.secret_key)
    store.put(key, b"image", "image/webp")
    url = store.presigned_url(key, 60)
    assert url is not None and fetch(url)[1]["content-type"] == "image/webp"


@pytest.mark.parametrize("wrong", ["access", "secret", "none"])
def test_s3_refuses_wrong_credentials(s3_server: Server, key: str, wrong: str) -> None:
    open_store(s3_server.url, s3_server.access_key, s3_server.secret_key).put(key, b"private", "image/jpeg")
    given = {
        "access": ("somebody", s3_server.secret_key),
        "secret": (s3_server.access_key, "wrong-secret"),
        "none": ("", ""),
    }
    store = open_store(s3_server.url, *given[wrong])
    for verb in (store.check, lambda: store.get(key), lambda: store.size(key), lambda: list(store.list("images/"))):
        with pytest.raises(Refusal) as refused:
            verb()
        assert "secret" not in refused.value.message
    with pytest.raises(Unavailable):
        store.check()


def test_s3_down_then_back(tmp_path: Path) -> None:
    with rclone_s3(tmp_path) as server:
        if server.stop is None or server.start is None:
            pytest.skip("the S3 server of EKIBEN_TEST_S3_URL is not ours to stop")
        store = open_store(server.url, server.access_key, server.secret_key)
        store.put("images/a.jpg", b"a", "image/jpeg")
        server.stop()
        began = time.monotonic()
        for verb in (store.check, lambda: store.get("images/a.jpg"), lambda: list(store.list(""))):
            with pytest.raises(Unavailable) as refused:
                verb()
            assert refused.value.message == "the blob store is not available"
        assert time.monotonic() - began < 10
        server.start()
        store.check()
        assert store.get("images/a.jpg") == b"a"


def test_s3_that_never_answers() -> None:
    """An address that takes no connections at all is given up within the time of two attempts."""
    store = S3Store("bucket", "192.0.2.1:9000", False, "us-east-1", "a", "b")  # RFC 5737: nobody is there
    began = time.monotonic()
    with pytest.raises(Unavailable):
        store.get("images/a.jpg")
    assert time.monotonic() - began < 10


def test_opening_connects_to_nothing() -> None:
    store = open_store(f"s3://bucket?endpoint=http://127.0.0.1:{free_port()}&region=eu-west-1", "a", "b")
    with pytest.raises(Unavailable):
        store.check()
