"""Webhooks: signed as Standard Webhooks says, sent to a real address, tried again, and never for ever."""

from __future__ import annotations

import base64
import hashlib
import hmac
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa
from sqlmodel import Session, col

from db.jobs import JobRecords
from db.migrate import migrate
from db.session import connect
from db.tables import Job, now
from ekiben.errors import BadInput
from services.jobs import webhooks
from services.jobs.webhooks import Webhooks, check_url, message, sign

SECRET = "whsec_" + base64.b64encode(b"a key of 24 random bytes").decode()
LATER = timedelta(days=1)


def expected_signature(key: bytes, ident: str, timestamp: str, body: bytes) -> str:
    """As https://www.standardwebhooks.com says: base64 of the HMAC-SHA256 of ``id.timestamp.payload``."""
    signed = ident.encode() + b"." + timestamp.encode() + b"." + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()


class Listener(ThreadingHTTPServer):
    """An address that answers each request with the next of ``statuses``, the last one for ever."""

    daemon_threads = True

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses = list(statuses)
        self.heard: list[tuple[str, dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/hook?a=b"


class _Handler(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.heard.append((self.path, headers, body))
        statuses = self.server.statuses
        status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("location", "/elsewhere")
        self.send_header("content-length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.heard.append((self.path, {}, b""))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def listening(*statuses: int) -> Iterator[Listener]:
    with Listener(*statuses) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield listener
        listener.shutdown()
        thread.join()


@contextmanager
def answering(answer: bytes, pause_s: float) -> Iterator[str]:
    """An address that takes every connection and says one byte of ``answer`` after each pause; nothing when empty."""
    ended = threading.Event()

    def talk(connection: socket.socket) -> None:
        with closing(connection):
            try:
                for byte in answer:
                    connection.sendall(bytes([byte]))
                    if ended.wait(pause_s):
                        return
                ended.wait(30)
            except OSError:
                pass

    def accept() -> None:
        while not ended.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        ended.set()


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without rows, to be copied for each test."""
    path = tmp_path_factory.mktemp("template") / "x.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def engine(template: Path, tmp_path: Path) -> Iterator[sa.Engine]:
    shutil.copytree(template.parent, tmp_path, dirs_exist_ok=True)
    engine = connect(f"sqlite:///{tmp_path / 'x.db'}")
    yield engine
    engine.dispose()


@pytest.fixture
def records(engine: sa.Engine) -> JobRecords:
    return JobRecords(engine)


def finished(records: JobRecords, url: str | None) -> Job:
    """A job that was just cancelled."""
    job = Job(kind="batch", operation="classify", total=2, timeout_s=60, webhook_url=url)
    records.submit(job, [{"id": f"{job.id[:-1]}{n}"} for n in range(2)], 0, lambda *given: None)
    return records.cancel("local", job.id)


def said_ids(listener: Listener) -> list[str]:
    """Of the jobs that the address was told of."""
    return [orjson.loads(body)["data"]["id"] for _, _, body in listener.heard]


def state(records: JobRecords, job: Job) -> tuple[str | None, int, datetime | None]:
    found = records.job("local", job.id)
    return found.webhook_state, found.webhook_tries, found.webhook_at


# ---- the message ----


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


# ---- delivery ----


@pytest.mark.parametrize("status", [200, 299])
def test_a_delivery(records: JobRecords, status: int) -> None:
    with listening(status) as listener:
        job, silent = finished(records, listener.url), finished(records, None)
        assert state(records, job)[:2] == ("pending", 0)
        begun = int(time.time())
        hooks = Webhooks(records, SECRET)
        hooks.deliver_due(now())
        hooks.deliver_due(now() + LATER)  # once is enough
        [(path, headers, body)] = listener.heard
        assert path == "/hook?a=b"
        assert orjson.loads(body)["data"]["id"] == job.id
        assert headers["content-type"] == "application/json"
        assert headers["webhook-id"].startswith(job.id)
        assert begun <= int(headers["webhook-timestamp"]) <= time.time()
        wanted = expected_signature(
            b"a key of 24 random bytes", headers["webhook-id"], headers["webhook-timestamp"], body
        )
        assert headers["webhook-signature"] == wanted
        assert state(records, job) == ("delivered", 1, None)
        assert state(records, silent) == (None, 0, None)


@pytest.mark.parametrize("status", [500, 302])
def test_what_is_not_taken_is_sent_again_ever_later(records: JobRecords, status: int) -> None:
    with listening(status) as listener:
        job = finished(records, listener.url)
        hooks, moment = Webhooks(records, SECRET), now()
        waits = []
        for tries in range(1, webhooks.MAX_TRIES):
            hooks.deliver_due(moment)
            said, count, again = state(records, job)
            assert (said, count) == ("pending", tries) and again is not None
            waits.append((again - moment).total_seconds())
            hooks.deliver_due(again - timedelta(seconds=0.5))  # too early
            moment = again
        assert waits == [2.0 * 3**n for n in range(webhooks.MAX_TRIES - 1)]
        hooks.deliver_due(moment)
        assert state(records, job) == ("failed", webhooks.MAX_TRIES, None)
        hooks.deliver_due(moment + LATER)
        assert len(listener.heard) == webhooks.MAX_TRIES
        assert {path for path, _, _ in listener.heard} == {"/hook?a=b"}  # a redirect is not followed
        assert len({headers["webhook-id"] for _, headers, _ in listener.heard}) == 1


def test_how_long_an_address_may_be_away() -> None:
    """As FIRST_RETRY_S says of all waits together."""
    waits_s = [webhooks.FIRST_RETRY_S * 3**n for n in range(webhooks.MAX_TRIES - 1)]
    assert sum(waits_s) / 60 == pytest.approx(36, abs=1)


def test_what_is_taken_at_last(records: JobRecords) -> None:
    with listening(503, 429, 200) as listener:
        job = finished(records, listener.url)
        hooks, moment = Webhooks(records, SECRET), now()
        for wanted in (("pending", 1), ("pending", 2), ("delivered", 3)):
            hooks.deliver_due(moment)
            assert state(records, job)[:2] == wanted
            moment = state(records, job)[2] or moment


def test_each_is_tried_by_one_process(records: JobRecords) -> None:
    with listening(200) as listener:
        jobs = [finished(records, listener.url) for _ in range(12)]
        hooks, moment = [Webhooks(records, SECRET) for _ in range(3)], now()
        threads = [threading.Thread(target=each.deliver_due, args=(moment,)) for each in hooks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(said_ids(listener)) == sorted(job.id for job in jobs)


def test_those_that_wait_for_a_slow_address_are_nobody_elses(
    records: JobRecords, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One process goes through what is due, slow addresses first; meanwhile no other may send the rest as well."""
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 0.2)
    with answering(b"", 0) as dead, listening(200) as listener:
        for _ in range(5):
            finished(records, dead)
        time.sleep(0.01)
        job = finished(records, listener.url)
        hooks = Webhooks(records, SECRET)
        first = threading.Thread(target=hooks.deliver_due, args=(now(),))
        first.start()
        time.sleep(0.8)  # the lease was three timeouts
        assert first.is_alive()
        Webhooks(records, SECRET).deliver_due(now())
        first.join(10)
        assert said_ids(listener) == [job.id]


@pytest.mark.parametrize("kind", ["refused", "silent", "cut off", "no HTTP", "drip"])
def test_an_address_that_does_not_answer_is_given_up(
    records: JobRecords, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 0.3)
    answers = {"silent": (b"", 0.0), "drip": (b"HTTP/1.1 200 OK\r\nx-header: " + b"x" * 12, 0.1)}
    answers["no HTTP"] = (b"hello\r\n\r\n", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with answering(*answers.get(kind, (b"", 0.0))) as url:
        if kind == "refused":
            url = f"http://127.0.0.1:{port}/"
        if kind == "cut off":
            monkeypatch.setattr(Listener, "finish_request", lambda *given: None)
        with listening(200) as listener:
            job = finished(records, listener.url if kind == "cut off" else url)
            begun = time.monotonic()
            Webhooks(records, SECRET).deliver_due(now())
            assert time.monotonic() - begun < 1.5
            assert state(records, job)[:2] == ("pending", 1)


def test_an_answer_without_end_is_not_read(records: JobRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 0.5)
    with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n" + b"x" * 1000, 0.001) as url:
        job = finished(records, url)
        begun = time.monotonic()
        Webhooks(records, SECRET).deliver_due(now())
        assert time.monotonic() - begun < 1.5
        assert state(records, job) == ("delivered", 1, None)


def test_an_address_that_the_client_cannot_read(records: JobRecords) -> None:
    hooks = Webhooks(records, SECRET)
    for url in ("http://a..b/", "http://" + "x" * 70 + ".example/", "http://ho st/", "http://host:99999/"):
        job = finished(records, url)
        hooks.deliver_due(now())
        assert state(records, job)[:2] == ("pending", 1), url


def test_a_stop_ends_a_round(records: JobRecords) -> None:
    with listening(200) as listener:
        job = finished(records, listener.url)
        hooks = Webhooks(records, SECRET)
        hooks.stop()
        hooks.deliver_due(now())
        assert listener.heard == []
        # Somebody else sends it once the lease is over.
        Webhooks(records, SECRET).deliver_due(now() + LATER)
        assert state(records, job)[0] == "delivered"


def test_a_job_that_was_tried_again_says_so_anew(records: JobRecords, engine: sa.Engine) -> None:
    """Its second end is another message: who keeps ids to notice repeats must not take it for one."""
    with listening(200) as listener:
        job = finished(records, listener.url)
        hooks = Webhooks(records, SECRET)
        hooks.deliver_due(now())
        records.retry("local", job.id, lambda items: 0, lambda *given: None)
        assert state(records, job) == (None, 0, None)
        records.cancel("local", job.id)
        hooks.deliver_due(now())
        assert [orjson.loads(body)["type"] for _, _, body in listener.heard] == ["job.cancelled"] * 2
        first, second = (headers["webhook-id"] for _, headers, _ in listener.heard)
        assert first != second
    with Session(engine) as session:
        assert session.execute(sa.select(col(Job.webhook_state))).scalars().all() == ["delivered"]


def test_times_are_of_the_zone_that_they_name(records: JobRecords) -> None:
    job = finished(records, None)
    said = orjson.loads(message(job))["timestamp"]
    assert abs(datetime.fromisoformat(said) - datetime.now(UTC)) < timedelta(seconds=30)
