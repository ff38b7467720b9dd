"""A web server that records the webhooks it gets, and jobs that are due to send one."""

from __future__ import annotations

import base64
import hashlib
import hmac
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson

from db.jobs import JobRecords
from db.tables import Job

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
