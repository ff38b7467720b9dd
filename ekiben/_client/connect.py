"""From a URL to a transport. httpx and grpc are imported when they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from ekiben._client.requests import AsyncTransport, Transport

URL = "http://localhost:3000"
GRPC_PORT = 3001


def connect(url: str, timeout_s: float, headers: Mapping[str, str], ca: str | Path | None) -> Transport:
    """A transport to ``url``, HTTP or gRPC by its scheme. Raises ValueError for another scheme or no host."""
    scheme, target, trusted = _read(url, ca)
    if scheme in ("grpc", "grpcs"):
        with _installed():
            from ekiben._client.grpc_transport import GrpcTransport
        return GrpcTransport(target, timeout_s, headers, scheme == "grpcs", trusted)
    from ekiben._client.http_transport import HttpTransport

    return HttpTransport(target, timeout_s, headers, trusted)


def connect_async(url: str, timeout_s: float, headers: Mapping[str, str], ca: str | Path | None) -> AsyncTransport:
    """A transport for event loops to ``url``; see ``connect``."""
    scheme, target, trusted = _read(url, ca)
    if scheme in ("grpc", "grpcs"):
        with _installed():
            from ekiben._client.grpc_transport import AsyncGrpcTransport
        return AsyncGrpcTransport(target, timeout_s, headers, scheme == "grpcs", trusted)
    from ekiben._client.http_transport import AsyncHttpTransport

    return AsyncHttpTransport(target, timeout_s, headers, trusted)


@contextmanager
def _installed() -> Iterator[None]:
    """Name grpcio-status in the error: of the packages that gRPC needs it installs the others."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"gRPC needs grpcio-status: pip install grpcio-status ({error})") from None


def _read(url: str, ca: str | Path | None) -> tuple[str, str, Path | None]:
    """Scheme, the URL for httpx or ``host:port`` for grpc, and the file of certificates."""
    full = url if "://" in url else f"http://{url}"
    parts = urlsplit(full)
    port = parts.port  # ValueError for what is no number
    if parts.scheme not in ("http", "https", "grpc", "grpcs") or not parts.hostname:
        raise ValueError(f"{url!r} is no address: http://, https://, grpc:// or grpcs://, host and port")
    trusted = Path(ca) if ca is not None else None
    if parts.scheme in ("http", "https"):
        return parts.scheme, full, trusted
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts.scheme, f"{host}:{port or GRPC_PORT}", trusted
