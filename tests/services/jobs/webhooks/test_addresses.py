"""The signature and the body of a webhook, and the addresses that are refused."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import orjson
import pytest

from db.jobs import JobRecords
from ekiben.errors import BadInput
from services.jobs.webhooks import check_url, message, sign
from tests.services.jobs.webhooks.listener import SECRET, expected_signature, finished


@pytest.mark.parametrize(
    ("secret", "key"),
    [
        (SECRET, b"a key of 24 random bytes"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")),
        ("plain words", b"plain words"),
        ("whsec_not base64!", b"whsec_not base64!"),
    ],
)
def test_the_signature(secret: str, key: bytes) -> None:
    body = b'{"a": "\xc3\xbc"}'
    assert sign(secret, "msg_1", 1614265330, body) == expected_signature(key, "msg_1", "1614265330", body)


def test_the_example_of_the_standard() -> None:
    body = b'{"test": 2432232314}'
    secret, ident = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek"
    assert sign(secret, ident, 1614265330, body) == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_what_is_sent(records: JobRecords) -> None:
    job = finished(records, "http://x/")
    said = orjson.loads(message(job))
    assert said["type"] == "job.cancelled"
    assert job.finished_at is not None
    assert said["timestamp"].endswith("Z") and datetime.fromisoformat(said["timestamp"]) == job.finished_at
    assert said["data"] == {
        "id": job.id,
        "kind": "batch",
        "operation": "classify",
        "state": "cancelled",
        "counts": {"total": 2, "done": 0, "failed": 0},
        "error": None,
        "url": f"/v1/jobs/{job.id}",
    }


@pytest.mark.parametrize(
    "url", ["http://example.org", "https://example.org:8443/a?b=c", "http://[::1]:80/", "HTTP://X/"]
)
def test_addresses(url: str) -> None:
    assert check_url(url, SECRET) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.org",
        "/hook",
        "ftp://example.org/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "http://",
        "http:///path",
        "http://me@example.org/",
        "http://me:word@example.org/",
        "http://example.org/" + "x" * 2000,
        "http://[::1",
        "http://[nonsense]/",
        "http://example.org:99999/",
        "http://example.org:http/",
    ],
)
def test_what_cannot_be_an_address(url: str) -> None:
    with pytest.raises(BadInput, match="webhook"):
        check_url(url, SECRET)


def test_without_a_secret_there_are_no_webhooks() -> None:
    with pytest.raises(BadInput, match="EKIBEN_WEBHOOK_SECRET"):
        check_url("http://example.org/", "")


def test_times_are_of_the_zone_that_they_name(records: JobRecords) -> None:
    job = finished(records, None)
    said = orjson.loads(message(job))["timestamp"]
    assert abs(datetime.fromisoformat(said) - datetime.now(UTC)) < timedelta(seconds=30)
