"""Webhooks: signed as Standard Webhooks says, sent to a real address, tried again, and never for ever."""

from __future__ import annotations

import socket
import threading
import time
from datetime import datetime, timedelta

import orjson
import pytest
import sqlalchemy as sa
from sqlmodel import Session, col

from db.jobs import JobRecords
from db.tables import Job, now
from services.jobs import webhooks
from services.jobs.webhooks import Webhooks
from services.outbound.http_exchange import Network
from tests.services.jobs.webhooks.listener import (
    LATER,
    SECRET,
    Listener,
    answering,
    expected_signature,
    finished,
    listening,
    said_ids,
    state,
)
from tests.services.outbound.addresses import PRIVATE, PUBLIC, THIS_MACHINE, connect_as_from_afar


@pytest.mark.parametrize("status", [200, 299])
def test_a_delivery(records: JobRecords, status: int) -> None:
    with listening(status) as listener:
        job, silent = finished(records, listener.url), finished(records, None)
        assert state(records, job)[:2] == ("pending", 0)
        begun = int(time.time())
        hooks = Webhooks(records, SECRET, allow_private=True)
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
        hooks, moment = Webhooks(records, SECRET, allow_private=True), now()
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
        hooks, moment = Webhooks(records, SECRET, allow_private=True), now()
        for wanted in (("pending", 1), ("pending", 2), ("delivered", 3)):
            hooks.deliver_due(moment)
            assert state(records, job)[:2] == wanted
            moment = state(records, job)[2] or moment


def test_each_is_tried_by_one_process(records: JobRecords) -> None:
    with listening(200) as listener:
        jobs = [finished(records, listener.url) for _ in range(12)]
        hooks, moment = [Webhooks(records, SECRET, allow_private=True) for _ in range(3)], now()
        threads = [threading.Thread(target=each.deliver_due, args=(moment,)) for each in hooks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert sorted(said_ids(listener)) == sorted(job.id for job in jobs)


class Slow(Webhooks):
    """Each delivery takes as long as one may take, by a clock of the test; looks then who may have the job."""

    def __init__(self, records: JobRecords, moment: datetime) -> None:
        super().__init__(records, SECRET, allow_private=True, clock=lambda: self.now_s)
        self.now_s = 0.0
        self._records, self._moment = records, moment

    def deliver(self, job: Job) -> str | None:
        self.now_s += webhooks.TIMEOUT_S
        _, _, lent_until = state(self._records, job)
        assert lent_until is not None and lent_until > self._moment + timedelta(seconds=self.now_s)
        return super().deliver(job)


def test_those_that_wait_for_a_slow_address_are_nobody_elses(records: JobRecords) -> None:
    """One process goes through what is due, slow addresses first; whatever it just sends no other may send as well."""
    with listening(200) as listener:
        jobs = [finished(records, listener.url) for _ in range(12)]
        moment = now()
        Slow(records, moment).deliver_due(moment)
        assert said_ids(listener) == [job.id for job in jobs]


@pytest.mark.parametrize("kind", ["refused", "silent", "cut off", "no HTTP", "drip"])
def test_an_address_that_does_not_answer_is_given_up(
    records: JobRecords, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 0.3)
    answers = {"silent": (b"", 0.0), "drip": (b"HTTP/1.1 200 OK\r\nx-header: " + b"x" * 200, 0.1)}
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
            Webhooks(records, SECRET, allow_private=True).deliver_due(now())
            assert time.monotonic() - begun < 10
            assert state(records, job)[:2] == ("pending", 1)


def test_an_answer_without_end_is_not_read(records: JobRecords, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_S", 5)
    with answering(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n" + b"x" * 1000, 0.001) as url:
        job = finished(records, url)
        Webhooks(records, SECRET, allow_private=True).deliver_due(now())
        assert state(records, job) == ("delivered", 1, None)


def test_an_address_that_the_client_cannot_read(records: JobRecords) -> None:
    hooks = Webhooks(records, SECRET, allow_private=True)
    for url in ("http://a..b/", "http://" + "x" * 70 + ".example/", "http://ho st/", "http://host:99999/"):
        job = finished(records, url)
        hooks.deliver_due(now())
        assert state(records, job)[:2] == ("pending", 1), url


def test_a_stop_ends_a_round(records: JobRecords) -> None:
    with listening(200) as listener:
        job = finished(records, listener.url)
        hooks = Webhooks(records, SECRET, allow_private=True)
        hooks.stop()
        hooks.deliver_due(now())
        assert listener.heard == []
        # Somebody else sends it once the lease is over.
        Webhooks(records, SECRET, allow_private=True).deliver_due(now() + LATER)
        assert state(records, job)[0] == "delivered"


def test_a_job_that_was_tried_again_says_so_anew(records: JobRecords, engine: sa.Engine) -> None:
    """Its second end is another message: who keeps ids to notice repeats must not take it for one."""
    with listening(200) as listener:
        job = finished(records, listener.url)
        hooks = Webhooks(records, SECRET, allow_private=True)
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


def name(listener: Listener) -> str:
    return f"http://hooks.example:{listener.server_address[1]}/"


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_gets_nothing(
    records: JobRecords, address: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where it was public when the job was submitted; the next delivery asks again."""
    connected: list[str] = []
    with listening(200) as listener:

        def connect(to: str, port: int, timeout_s: float) -> socket.socket:
            connected.append(to)
            return connect_as_from_afar(port, timeout_s)

        answers = iter([[PUBLIC, address], [PUBLIC]])
        network = Network(lambda host, port: next(answers), connect)
        job = finished(records, name(listener))
        hooks = Webhooks(records, SECRET, allow_private=False, network=network)
        hooks.deliver_due(now())
        assert (connected, listener.heard) == ([], [])
        assert state(records, job)[:2] == ("pending", 1)
        assert "not on the public internet: 'hooks.example'" in caplog.records[-1].said  # type: ignore[attr-defined]
        hooks.deliver_due(now() + LATER)
        assert connected == [PUBLIC]  # the address that was checked: the name is asked once per delivery
        assert state(records, job)[0] == "delivered"


@pytest.mark.parametrize("host", THIS_MACHINE)
def test_no_spelling_of_this_machine_gets_anything(records: JobRecords, host: str) -> None:
    with listening(200) as listener:
        job = finished(records, f"http://{host}:{listener.server_address[1]}/")
        Webhooks(records, SECRET, allow_private=False).deliver_due(now())
        assert listener.heard == []
        assert state(records, job)[:2] == ("pending", 1)
