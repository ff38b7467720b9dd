"""The signature and the body of a webhook, and the addresses that are refused."""

from __future__ import annotations

import asyncio
import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest

from db.jobs import JobRecords
from db.tables import Job
from ekiben.errors import BadInput, Overloaded
from ekiben.settings import Settings
from services.jobs import submission, webhooks
from services.jobs.submission import JobTerms, single_job
from services.jobs.webhooks import check_url, message, sign
from services.outbound.http_exchange import Network
from tests.services.jobs.webhooks.listener import SECRET, expected_signature, finished
from tests.services.outbound.addresses import PRIVATE, PUBLIC, THIS_MACHINE
from tests.waiting import async_eventually


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
    assert check_url(url, SECRET, allow_private=True) == url


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
    for allow_private in (True, False):
        with pytest.raises(BadInput, match="webhook"):
            check_url(url, SECRET, allow_private=allow_private)


def test_without_a_secret_there_are_no_webhooks() -> None:
    with pytest.raises(BadInput, match="EKIBEN_WEBHOOK_SECRET"):
        check_url("http://example.org/", "", allow_private=False)


def test_times_are_of_the_zone_that_they_name(records: JobRecords) -> None:
    job = finished(records, None)
    said = orjson.loads(message(job))["timestamp"]
    assert abs(datetime.fromisoformat(said) - datetime.now(UTC)) < timedelta(seconds=30)


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused_when_the_job_is_submitted(address: str) -> None:
    url, network = "http://hooks.example/x", Network(lambda host, port: [PUBLIC, address])
    with pytest.raises(BadInput, match=r"^webhook: .*'hooks\.example'; the setting that allows private") as caught:
        check_url(url, SECRET, allow_private=False, network=network)
    assert caught.value.code == "url_private"
    assert check_url(url, SECRET, allow_private=True, network=network) == url


@pytest.mark.parametrize("host", THIS_MACHINE)
def test_no_spelling_of_this_machine_is_accepted(host: str) -> None:
    with pytest.raises(BadInput, match="webhook") as caught:
        check_url(f"https://{host}:8443/x", SECRET, allow_private=False)
    assert caught.value.code == "url_private"


def test_a_name_that_is_not_known_yet_is_left_to_the_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    url = "https://later.example/x"
    assert check_url(url, SECRET, allow_private=False, network=Network(lambda host, port: [])) == url
    monkeypatch.setattr(webhooks, "LOOK_UP_S", 0.05)
    release = threading.Event()
    slow = Network(lambda host, port: ["127.0.0.1"] if release.wait(20) else [])
    assert check_url(url, SECRET, allow_private=False, network=slow) == url
    release.set()


def test_a_job_is_submitted_as_the_setting_says() -> None:
    async def submitted(**settings: Any) -> Job:
        terms = JobTerms(webhook="http://127.0.0.1:8000/")
        row = {"given": None, "job_id": None, "timeout_s": None, "owner": "local"}
        return await single_job(Settings(webhook_secret=SECRET, **settings), "import", "import", {}, terms, **row)

    with pytest.raises(BadInput, match="webhook: the host of the URL is not on the public internet"):
        asyncio.run(submitted())
    assert asyncio.run(submitted(private_urls=True)).webhook_url == "http://127.0.0.1:8000/"


def test_names_that_nobody_answers_for_take_no_thread_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many are looked up at once; one more is refused, and one that has a place again is not."""
    row = {"given": None, "job_id": None, "timeout_s": None, "owner": "local"}
    settings = Settings(webhook_secret=SECRET)
    answering = threading.Event()
    threads: set[str] = set()

    def hanging(url: str, secret: str, *, allow_private: bool) -> str:
        threads.add(threading.current_thread().name)
        assert answering.wait(30)
        return url

    async def submit() -> Job:
        terms = JobTerms(webhook="https://hooks.example/")
        return await single_job(settings, "import", "import", {}, terms, **row)

    async def main() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        waiting = [asyncio.create_task(submit()) for _ in range(submission.LOOK_UPS)]
        await async_eventually(lambda: len(threads) == submission.LOOK_UPS)
        with pytest.raises(Overloaded) as refused:
            await submit()
        assert refused.value.retry_after_s == 2
        assert await asyncio.to_thread(lambda: "free") == "free"
        waiting[0].cancel()  # the caller has left, but the look-up goes on
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await submit()
        answering.set()
        done = await asyncio.gather(*waiting, return_exceptions=True)
        assert [isinstance(each, Job) for each in done] == [False] + [True] * (submission.LOOK_UPS - 1)
        await async_eventually(lambda: submission._places._value == submission.LOOK_UPS)
        assert (await submit()).webhook_url == "https://hooks.example/"

    monkeypatch.setattr(submission, "check_url", hanging)
    asyncio.run(main())
