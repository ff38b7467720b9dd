"""Fetching a file from a URL of a user (services/outbound/http_exchange.py guards the requests)."""

from __future__ import annotations

import http.client
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urljoin, urlsplit

from ekiben.errors import BadInput, TooLarge
from services.outbound.http_exchange import Exchange, Network, parse

MAX_REDIRECTS: Final = 5
_CHUNK: Final = 1 << 16
_REDIRECTS: Final = (301, 302, 303, 307, 308)


def fetch(
    url: str,
    target: Path,
    *,
    max_bytes: int,
    timeout_s: float,
    allow_private: bool,
    progress: Callable[[float], None] | None = None,
    network: Network | None = None,
) -> None:
    """Write the content of ``url`` to ``target``, or raise BadInput or TooLarge (codes ``url_...``) and leave no file.

    ``timeout_s`` covers the whole, redirects included. Each name is resolved once, and the connection goes to the
    address that was checked, so that a name which resolves to another one meanwhile (DNS rebinding) gains nothing.
    ``progress`` is called with the share done, 0-1.
    """
    try:
        _fetch(
            url, target, max_bytes, Exchange.begin(timeout_s, allow_private=allow_private, network=network), progress
        )
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _fetch(
    url: str, target: Path, max_bytes: int, exchange: Exchange, progress: Callable[[float], None] | None
) -> None:
    for _ in range(MAX_REDIRECTS + 1):
        parts = parse(url)
        with exchange.response("GET", parts, {"Accept-Encoding": "identity"}) as response:
            if response.status not in _REDIRECTS:
                _save(response, target, max_bytes, progress)
                exchange.left_s()
                return
            location = response.getheader("Location")
        if not location:
            raise BadInput("the URL redirects to nowhere", code="url_redirect")
        following = urljoin(url, location)
        if parts.scheme == "https" and urlsplit(following).scheme == "http":
            raise BadInput("the URL leads from https to http", code="url_redirect")
        url = following
    raise BadInput(f"the URL redirects more than {MAX_REDIRECTS} times", code="url_redirect")


def _save(
    response: http.client.HTTPResponse, target: Path, max_bytes: int, progress: Callable[[float], None] | None
) -> None:
    if response.status != 200:
        raise BadInput(f"the URL answers with the status {response.status}", code="url_status")
    encoding = response.getheader("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise BadInput(f"the URL answers with the content encoding {encoding[:40]!r}", code="url_encoding")
    expected = response.length
    if expected is not None and expected > max_bytes:
        raise TooLarge(f"the URL gives {expected} bytes; at most {max_bytes} are accepted", code="url_too_large")
    written = 0
    with target.open("wb") as out:
        while chunk := _read(response):
            written += len(chunk)
            if written > max_bytes:
                raise TooLarge(
                    f"the URL gives more than {max_bytes} bytes, which is all that is accepted", code="url_too_large"
                )
            out.write(chunk)
            if progress is not None:
                progress(written / (expected or max_bytes))
    if expected is not None and written != expected:
        raise BadInput(f"the URL broke off after {written} of {expected} bytes", code="url_broken")


def _read(response: http.client.HTTPResponse) -> bytes:
    # Apart from ``_save``, whose errors, such as a full disk, are not the URL's.
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException, ValueError):
        raise BadInput("the connection to the URL broke off", code="url_broken") from None
