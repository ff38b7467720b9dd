"""Ekiben as the job benchmark sees it: started with settings, called over HTTP, measured process by process."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from bench.contenders import SERVING_PYTHON
from bench.load import children_s
from bench.servers import Missing, Server, busy_s, clean_environ, free_port

OVER = ("succeeded", "failed", "cancelled")
WORKER_S = 60.0
STALE_S = 2.0
_JPEG = {"Content-Type": "image/jpeg"}
_JOB = {"Prefer": "respond-async", **_JPEG}


class Ekiben(Server):
    """A server on a home, with the settings that it ships with but for those named. For one thread."""

    def __init__(self, home: Path, **settings: str) -> None:
        port = free_port()
        own = {"EKIBEN_HOME": str(home), "EKIBEN_PORT": str(port), "EKIBEN_GRPC_PORT": str(free_port())}
        own |= {f"EKIBEN_{name.upper()}": value for name, value in settings.items()}
        command = [str(SERVING_PYTHON), "-m", "services"]
        log = home.with_name(f"{home.name}.log")
        super().__init__(f"ekiben {home.name}", command, {**clean_environ(), **own}, "/readyz", port, log)
        self.home, self.environ, self.log = home, {**clean_environ(), **own}, log
        self._connection: http.client.HTTPConnection | None = None
        self._requested = 0.0
        self._log_begins = 0

    @contextmanager
    def running_on(self) -> Iterator[Ekiben]:
        """Started, its workers too; stopped at the end."""
        try:
            self._log_begins = self.log.stat().st_size if self.log.exists() else 0
            self.start()
            if self.environ.get("EKIBEN_WORKERS") != "0":
                self.worker()
            yield self
        finally:
            self.stop()

    def stop(self) -> None:
        """Close the connection and end its processes."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        super().stop()

    def worker(self) -> psutil.Process:
        """The worker's process, once it says that it is ready. Missing when there is none."""
        end = time.monotonic() + WORKER_S
        while time.monotonic() < end:
            if b"worker ready" in self.log.read_bytes()[self._log_begins :]:
                for each in self.processes():
                    with contextlib.suppress(psutil.NoSuchProcess):
                        if "services.worker" in each.cmdline():
                            return each
            time.sleep(0.1)
        raise Missing(f"no worker was ready after {WORKER_S:.0f} s")

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body, on a connection that is kept."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=120)
        elif time.monotonic() - self._requested > STALE_S:
            self._connection.close()  # the server may have done so; the next request opens it again
        self._connection.request(method, path, body, headers or {})
        answer = self._connection.getresponse()
        found = answer.read()
        self._requested = time.monotonic()
        return answer.status, found

    def get(self, path: str, headers: dict[str, str] | None = None) -> Any:
        """The JSON of a GET. Raises Missing for another status than 200."""
        return json.loads(self._ok(*self.request("GET", path, headers=headers)))

    def classify(self, image: bytes, query: str) -> dict[str, Any]:
        """The answer to a synchronous request."""
        answer: dict[str, Any] = json.loads(self._ok(*self.request("POST", f"/v1/classify?{query}", image, _JPEG)))
        return answer

    def submit(self, image: bytes, query: str) -> str:
        """The id of the job of one image."""
        return str(json.loads(self._ok(*self.request("POST", f"/v1/classify?{query}", image, _JOB)))["job_id"])

    def batch(self, fields: dict[str, Any], files: Sequence[tuple[str, bytes]] = ()) -> str:
        """The id of a batch: of files in a form, or of the ``image_ids`` in ``fields`` as JSON."""
        if files:
            mark = os.urandom(12).hex()
            parts = [_part(mark, f'name="{name}"', _text(value)) for name, value in fields.items()]
            parts += [_part(mark, f'name="files"; filename="{name}"', data) for name, data in files]
            body = b"".join([*parts, f"--{mark}--\r\n".encode()])
            kind = f"multipart/form-data; boundary={mark}"
        else:
            body, kind = json.dumps(fields).encode(), "application/json"
        return str(json.loads(self._ok(*self.request("POST", "/v1/batches", body, {"Content-Type": kind})))["job_id"])

    def job(self, id: str) -> dict[str, Any]:
        """A job by its id."""
        found: dict[str, Any] = self.get(f"/v1/jobs/{id}")
        return found

    def wait(self, id: str, patience_s: float, every_s: float = 0.2) -> dict[str, Any]:
        """The job, once it is over. Missing when that takes too long or it did not succeed in all of its items."""
        end = time.monotonic() + patience_s
        while (job := self.job(id))["state"] not in OVER:
            if time.monotonic() > end:
                raise Missing(f"job {id} was {job['state']} after {patience_s:.0f} s: {job['counts']}")
            time.sleep(every_s)
        if job["state"] != "succeeded" or job["counts"]["failed"]:
            raise Missing(f"job {id} {job['state']}: {job['counts']}, {job['error']}")
        return job

    def items(self, id: str) -> list[dict[str, Any]]:
        """All items of a job that is over, in their order."""
        lines = self._ok(*self.request("GET", f"/v1/jobs/{id}/result", headers={"Accept": "application/x-ndjson"}))
        return [json.loads(line) for line in lines.splitlines()]

    def cancel(self, id: str) -> None:
        """Cancel a job."""
        self._ok(*self.request("POST", f"/v1/jobs/{id}/cancel"))

    def processes(self) -> list[psutil.Process]:
        """Its process and all descendants."""
        if self._process is None:
            return []
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def _ok(self, status: int, body: bytes) -> bytes:
        if status not in (200, 202):
            text = body[:200].decode(errors="replace")
            raise Missing(f"{self.name} answered {status}: {text}; its log ends: {self._last_line()}")
        return body


class Others:
    """``cores``: what processes that are neither the bench nor ``servers`` took of the machine meanwhile."""

    cores = 0.0

    def __init__(self, *servers: Server) -> None:
        self._servers = servers

    def __enter__(self) -> Others:
        self._before, self._start = self._foreign_s(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cores = max(0.0, self._foreign_s() - self._before) / (time.perf_counter() - self._start)

    def _foreign_s(self) -> float:
        mine = psutil.Process().cpu_times()
        return float(busy_s() - mine.user - mine.system - children_s() - sum(each.cpu_s() for each in self._servers))


def seconds_of(text: str) -> float:
    """Epoch seconds of a time in an answer."""
    return datetime.fromisoformat(text).timestamp()


def process_s(process: psutil.Process) -> float:
    """CPU seconds that one process has used so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _part(mark: str, info: str, data: bytes) -> bytes:
    return f"--{mark}\r\nContent-Disposition: form-data; {info}\r\n\r\n".encode() + data + b"\r\n"


def _text(value: Any) -> bytes:
    return (value if isinstance(value, str) else json.dumps(value)).encode()
