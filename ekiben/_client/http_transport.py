"""Sends requests over HTTP with httpx, from threads and event loops."""

from __future__ import annotations

import io
import json
import ssl
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from ekiben._client.errors import BEFORE_ANY_WORK, EkibenError, TimedOut, Unreachable
from ekiben._client.image_inputs import FileSource
from ekiben._client.requests import ClientRequest

_CONNECT_S = 10.0
# Shorter than servers keep an idle connection (5 s): when one closes while a request is sent, the client cannot know
# whether the request was computed.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=4.0)


class HttpTransport:
    """A transport over HTTP connections that are kept. ``ca``: certificates to trust; None: those of the system."""

    def __init__(
        self, url: str, timeout_s: float, headers: Mapping[str, str], ca: Path | None, *, transport: Any = None
    ) -> None:
        """``transport``: of httpx, for tests."""
        self._timeout_s = timeout_s
        self._client = httpx.Client(
            base_url=url, headers=dict(headers), limits=_LIMITS, verify=_trust(ca), transport=transport
        )

    def send(self, request: ClientRequest) -> Any:
        """Send a request and return what it reads from the response."""
        with refusals():
            with self._client.stream(**_stream_arguments(request, self._timeout_s)) as response:
                if request.into is not None and response.is_success:
                    with written(request.into) as file:
                        for piece in response.iter_bytes():
                            file.write(piece)
                    return request.into
                response.read()
            return _reply(request, response)

    def stream(self, request: ClientRequest) -> Generator[dict[str, Any] | None]:
        """Send a request and yield the messages of its response."""
        with refusals(), self._client.stream(**_stream_arguments(request, self._timeout_s)) as response:
            if not response.is_success:
                response.read()
                raise _error(response)
            events = Events()
            for line in response.iter_lines():
                yield from events.take(line)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class AsyncHttpTransport:
    """A transport over HTTP for event loops; arguments as for ``HttpTransport``."""

    def __init__(
        self, url: str, timeout_s: float, headers: Mapping[str, str], ca: Path | None, *, transport: Any = None
    ) -> None:
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            base_url=url, headers=dict(headers), limits=_LIMITS, verify=_trust(ca), transport=transport
        )

    async def send(self, request: ClientRequest) -> Any:
        """Send a request and return what it reads from the response."""
        with refusals():
            async with self._client.stream(**_stream_arguments(request, self._timeout_s)) as response:
                if request.into is not None and response.is_success:
                    with written(request.into) as file:
                        async for piece in response.aiter_bytes():
                            file.write(piece)
                    return request.into
                await response.aread()
            return _reply(request, response)

    async def stream(self, request: ClientRequest) -> AsyncGenerator[dict[str, Any] | None]:
        """Send a request and yield the messages of its response."""
        with refusals():
            async with self._client.stream(**_stream_arguments(request, self._timeout_s)) as response:
                if not response.is_success:
                    await response.aread()
                    raise _error(response)
                events = Events()
                async for line in response.aiter_lines():
                    for event in events.take(line):
                        yield event

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class Events:
    """Parses the lines of a stream of server-sent events (HTML standard, 9.2.6)."""

    def __init__(self) -> None:
        self._fields: dict[str, list[str]] = {}

    def take(self, line: str) -> Iterator[dict[str, Any] | None]:
        """The event that ``line`` completes, if any: number, kind and data.

        None for a comment, sent to keep the stream.
        """
        if line.startswith(":"):
            yield None
        elif line:
            name, _, value = line.partition(":")
            self._fields.setdefault(name, []).append(value.removeprefix(" "))
        else:
            fields, self._fields = self._fields, {}
            if "data" in fields:
                number, kind = fields["id"][-1], fields["event"][-1]
                yield {"number": int(number), "kind": kind, "data": json.loads("\n".join(fields["data"]))}


@contextmanager
def written(path: Path) -> Iterator[Any]:
    """A file to write; it gets its name ``path`` when the block has ended without an error."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def refusals() -> Iterator[None]:
    """Raise httpx's errors as EkibenError."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        address = error.request.url.copy_with(path="/", query=None)
        message = f"there is no server at {address}: {error}".rstrip(": ")
        raise Unreachable(message, code="unreachable", safe_to_retry=True) from None
    except httpx.TimeoutException:
        raise TimedOut("no answer within timeout_s of this client", code="deadline_exceeded") from None
    except httpx.TransportError as error:
        raise Unreachable(f"the connection broke off: {error}".rstrip(": "), code="unreachable") from None


def _trust(ca: Path | None) -> ssl.SSLContext | bool:
    return ssl.create_default_context(cafile=str(ca)) if ca is not None else True


def _stream_arguments(request: ClientRequest, timeout_s: float) -> dict[str, Any]:
    """Arguments of httpx's ``stream``. Raises EkibenError ``grpc_only``."""
    if not request.path:
        raise EkibenError("this goes over gRPC only: connect to grpc://...", code="grpc_only")
    seconds = request.timeout_s if request.timeout_s is not None else timeout_s
    arguments: dict[str, Any] = {
        "method": request.method,
        "url": request.path,
        "params": _texts(request.query),
        "headers": request.headers,
        "timeout": httpx.Timeout(seconds, connect=min(seconds, _CONNECT_S)),
        "follow_redirects": request.method == "GET",  # files may be in an object store
    }
    if request.json is not None:
        arguments["json"] = request.json
    if request.fields is not None:
        arguments["data"] = _texts(request.fields)
    if request.files:
        arguments["files"] = [(name, (file.name, _content(file), _BINARY)) for name, file in request.files]
    return arguments


_BINARY = "application/octet-stream"


def _texts(options: Mapping[str, Any]) -> dict[str, str]:
    """Values of a query or a form: strings as they are, others as JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}


def _content(file: FileSource) -> Any:
    return LazyFile(file.content) if isinstance(file.content, Path) else file.content


class LazyFile:
    """A file that is opened by its first read: a batch may have more files than a process may open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: io.BufferedReader | None = None
        self._size = path.stat().st_size
        self._position = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position; httpx seeks to the end for the size, and back to the start."""
        if whence == io.SEEK_SET and offset == 0 and self._file is not None:
            self._file.seek(0)
        self._position = self._size if whence == io.SEEK_END else offset
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """The next bytes; at the end of the file it is closed."""
        if self._file is None:
            self._file = self._path.open("rb")
        if not (data := self._file.read(size)):
            self._file.close()
            self._file = None
        return data


def _reply(request: ClientRequest, response: httpx.Response) -> Any:
    if not response.is_success:
        raise _error(response)
    try:
        return request.read(response.content)
    except ValueError as error:
        raise EkibenError(
            f"the answer cannot be read: {error}", code="bad_answer", status=response.status_code
        ) from error


def _error(response: httpx.Response) -> EkibenError:
    status, after = response.status_code, response.headers.get("retry-after", "")
    try:
        info = response.json()["error"]
        code, message, request_id = str(info["code"]), str(info["message"]), info.get("request_id")
    except (ValueError, KeyError, TypeError):  # from something in between, such as a proxy
        code, message, request_id = f"http_{status}", response.text[:200] or response.reason_phrase, None
    retry_after_s = float(after) if after.isdigit() else None
    kind = TimedOut if status == 504 else EkibenError
    return kind(
        message,
        code=code,
        status=status,
        request_id=request_id or response.headers.get("x-request-id"),
        retry_after_s=retry_after_s,
        safe_to_retry=code in BEFORE_ANY_WORK and retry_after_s is not None,
    )
