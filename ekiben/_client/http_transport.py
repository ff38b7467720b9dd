"""Requests over HTTP, carried by httpx: for threads and for event loops."""

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
from ekiben._client.image_inputs import File
from ekiben._client.requests import ClientRequest

_CONNECT_S = 10.0
# Shorter than servers keep an idle connection (5 s): one that ends while a request is on its way cannot be told from
# one that ended after it was computed.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20, keepalive_expiry=4.0)


class HttpTransport:
    def __init__(
        self, url: str, timeout_s: float, headers: Mapping[str, str], ca: Path | None, *, through: Any = None
    ) -> None:
        """``through``: a transport of httpx, for tests."""
        self._timeout_s = timeout_s
        self._client = httpx.Client(
            base_url=url, headers=dict(headers), limits=_LIMITS, verify=_trust(ca), transport=through
        )

    def send(self, query: ClientRequest) -> Any:
        with refusals():
            with self._client.stream(**_request(query, self._timeout_s)) as response:
                if query.into is not None and response.is_success:
                    with written(query.into) as file:
                        for piece in response.iter_bytes():
                            file.write(piece)
                    return query.into
                response.read()
            return _reply(query, response)

    def stream(self, query: ClientRequest) -> Generator[dict[str, Any] | None]:
        with refusals(), self._client.stream(**_request(query, self._timeout_s)) as response:
            if not response.is_success:
                response.read()
                raise _error(response)
            events = Events()
            for line in response.iter_lines():
                yield from events.take(line)

    def close(self) -> None:
        self._client.close()


class AsyncHttpTransport:
    def __init__(
        self, url: str, timeout_s: float, headers: Mapping[str, str], ca: Path | None, *, through: Any = None
    ) -> None:
        self._timeout_s = timeout_s
        self._client = httpx.AsyncClient(
            base_url=url, headers=dict(headers), limits=_LIMITS, verify=_trust(ca), transport=through
        )

    async def send(self, query: ClientRequest) -> Any:
        with refusals():
            async with self._client.stream(**_request(query, self._timeout_s)) as response:
                if query.into is not None and response.is_success:
                    with written(query.into) as file:
                        async for piece in response.aiter_bytes():
                            file.write(piece)
                    return query.into
                await response.aread()
            return _reply(query, response)

    async def stream(self, query: ClientRequest) -> AsyncGenerator[dict[str, Any] | None]:
        with refusals():
            async with self._client.stream(**_request(query, self._timeout_s)) as response:
                if not response.is_success:
                    await response.aread()
                    raise _error(response)
                events = Events()
                async for line in response.aiter_lines():
                    for event in events.take(line):
                        yield event

    async def close(self) -> None:
        await self._client.aclose()


class Events:
    """Server-sent events out of the lines of a stream (HTML standard, 9.2.6)."""

    def __init__(self) -> None:
        self._fields: dict[str, list[str]] = {}

    def take(self, line: str) -> Iterator[dict[str, Any] | None]:
        """The event that this line ends, if it does; None for a comment, which says that the server is there."""
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
    """A file that is there under its name when it is whole."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def refusals() -> Iterator[None]:
    """httpx's errors as the client's."""
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


def _request(query: ClientRequest, timeout_s: float) -> dict[str, Any]:
    """Arguments of httpx's ``stream``."""
    if not query.path:
        raise EkibenError("this goes over gRPC only: connect to grpc://...", code="grpc_only")
    seconds = query.timeout_s if query.timeout_s is not None else timeout_s
    request: dict[str, Any] = {
        "method": query.method,
        "url": query.path,
        "params": _texts(query.query),
        "headers": query.headers,
        "timeout": httpx.Timeout(seconds, connect=min(seconds, _CONNECT_S)),
        "follow_redirects": query.method == "GET",  # files may lie in a store of their own
    }
    if query.json is not None:
        request["json"] = query.json
    if query.fields is not None:
        request["data"] = _texts(query.fields)
    if query.files:
        request["files"] = [(name, (file.name, _content(file), _BINARY)) for name, file in query.files]
    return request


_BINARY = "application/octet-stream"


def _texts(options: Mapping[str, Any]) -> dict[str, str]:
    """As a query or a form says them: lists and dicts as JSON."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in options.items()}


def _content(file: File) -> Any:
    return LateFile(file.content) if isinstance(file.content, Path) else file.content


class LateFile:
    """A file that is opened when it is first read: a batch may have more of them than can be open."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: io.BufferedReader | None = None
        self._size = path.stat().st_size
        self._requested = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and offset == 0 and self._file is not None:
            self._file.seek(0)
        self._requested = self._size if whence == io.SEEK_END else offset
        return self._requested

    def tell(self) -> int:
        return self._requested

    def read(self, size: int = -1) -> bytes:
        if self._file is None:
            self._file = self._path.open("rb")
        if not (data := self._file.read(size)):
            self._file.close()
            self._file = None
        return data


def _reply(query: ClientRequest, response: httpx.Response) -> Any:
    if not response.is_success:
        raise _error(response)
    try:
        return query.read(response.content)
    except ValueError as error:
        raise EkibenError(
            f"the answer cannot be read: {error}", code="bad_answer", status=response.status_code
        ) from error


def _error(response: httpx.Response) -> EkibenError:
    status, after = response.status_code, response.headers.get("retry-after", "")
    try:
        info = response.json()["error"]
        code, message, request_id = str(info["code"]), str(info["message"]), info.get("request_id")
    except (ValueError, KeyError, TypeError):  # from something in between, as a proxy
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
