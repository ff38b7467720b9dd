"""Both clients for a test that does not wait itself: over a transport of its own, or a real server."""

from __future__ import annotations

import asyncio
import inspect
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from python_multipart.multipart import parse_options_header

from ekiben._client.http_transport import AsyncHttpTransport, HttpTransport
from ekiben.client import AsyncClient, Client
from services.rest.uploads.multipart import Upload, parse_form
from tests.servers import missing

Handler = Callable[[httpx.Request], httpx.Response]


class Awaited:
    """An AsyncClient as if it were a Client; what it iterates over comes as a list."""

    def __init__(self, client: AsyncClient, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        async def answer(*args: Any, **kwargs: Any) -> Any:
            made = method(*args, **kwargs)
            return await made if inspect.isawaitable(made) else [one async for one in made]

        return lambda *args, **kwargs: self._runner.run(answer(*args, **kwargs))


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Key and certificate of localhost."""
    if shutil.which("openssl") is None:
        missing("no openssl to make a certificate with")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return key, certificate


@contextmanager
def connected(kind: str, url: str, **options: Any) -> Iterator[Any]:
    """``kind``: sync or async."""
    if kind == "sync":
        with Client(url, **options) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        awaited = AsyncClient(url, **options)
        try:
            yield Awaited(awaited, runner)
        finally:
            runner.run(awaited.close())


@contextmanager
def handled(kind: str, handler: Handler, *, url: str = "http://ekiben.test", **options: Any) -> Iterator[Any]:
    """A client whose HTTP requests ``handler`` answers."""
    through = httpx.MockTransport(handler)
    carrier = HttpTransport if kind == "sync" else AsyncHttpTransport
    headers = options.pop("headers", {})
    with connected(kind, url, transport=carrier(url, 5.0, headers, None, transport=through), **options) as client:
        yield client


class Script:
    """Answers request after request, and keeps them."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.requests: list[httpx.Request] = []
        self._answers = list(answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    @property
    def requested(self) -> list[tuple[str, str]]:
        return [(request.method, request.url.path) for request in self.requests]


class Clock:
    """Seconds that pass only while a client pauses, or when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)

    async def async_sleep(self, seconds: float) -> None:
        self.sleep(seconds)


def said(body: Any, status: int = 200, **headers: str) -> httpx.Response:
    return httpx.Response(status, json=body, headers=headers)


def form(request: httpx.Request) -> Upload:
    """As the server reads it."""
    _, options = parse_options_header(request.headers["content-type"])
    return parse_form(request.read(), options[b"boundary"], "file")
