"""Published weights: downloaded once, checked by their SHA-256 every time. Needs no torch."""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from ekiben.errors import Unavailable
from ekiben.temporary_files import temporary_name
from export.zoo import ZooRow
from models.artifact import sha256_of

CONNECT_S = 10.0  # to connect
STALL_S = 30.0  # between two pieces of the body
_CHUNK = 1 << 20

Progress = Callable[[int, int | None], None]
"""Called with the number of bytes received and the total, None where the server does not send it."""


class WeightsUnavailable(Unavailable):
    """Published weights could not be obtained; the text says where to put the file by hand."""

    code = "weights_unavailable"


def fetch(
    row: ZooRow, folder: Path, progress: Progress, *, connect_s: float = CONNECT_S, stall_s: float = STALL_S
) -> Path:
    """The path of the row's published file in ``folder``; downloaded unless a file with its checksum is there.

    ``connect_s``, ``stall_s``: time limits of connecting and of each wait for data. Raises WeightsUnavailable, one
    sentence, for every failure; an existing file is then unchanged, and no partial download is left.
    """
    target = folder.absolute() / row.file
    found = f"; the file that lies at {target} has another checksum" if target.exists() else ""
    if found and _is_published(target, row):
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A unique name: two processes may download one file at a time.
        part = folder / temporary_name()
        file = part.open("xb")
    except OSError as error:
        raise _unavailable(row, target, f"{folder.absolute()} cannot be written: {error.strerror}") from None
    try:
        with file:
            _download(row.url, file.write, progress, connect_s, stall_s)
        if not _is_published(part, row):
            raise _unavailable(row, target, f"what came has the SHA-256 {sha256_of(part)[:16]}...{found}")
        os.replace(part, target)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            free_mb = shutil.disk_usage(folder).free // 1_000_000
            raise WeightsUnavailable(
                f"the weights of {row.name} from {row.url} have about {row.megabytes} MB, and {folder.absolute()} has "
                f"room for {free_mb} MB: free some there, or name another folder in EKIBEN_CACHE_DIR"
            ) from None
        raise _unavailable(row, target, _reason(error) + found) from None
    finally:
        part.unlink(missing_ok=True)
    return target


def _is_published(path: Path, row: ZooRow) -> bool:
    return path.is_file() and sha256_of(path).startswith(row.sha256_prefix)


def _unavailable(row: ZooRow, target: Path, reason: str) -> WeightsUnavailable:
    return WeightsUnavailable(
        f"the weights of {row.name} could not be had from {row.url} ({reason}); put the file by hand at {target} "
        f"(its SHA-256 begins with {row.sha256_prefix}), or name a mirror in EKIBEN_WEIGHTS_URL"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    if isinstance(error, urllib.error.URLError):
        error = error.reason if isinstance(error.reason, Exception) else error
    if isinstance(error, TimeoutError):
        return "timed out"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def _download(url: str, write: Callable[[bytes], Any], progress: Progress, connect_s: float, stall_s: float) -> None:
    opener = urllib.request.build_opener(_Http(stall_s), _Https(stall_s))
    with opener.open(url, timeout=connect_s) as response:
        length = response.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        done = 0
        while chunk := response.read1(_CHUNK):
            write(chunk)
            done += len(chunk)
            progress(done, total)
    if total is not None and done != total:
        raise ConnectionError(f"the connection ended after {done} of {total} bytes")


# urllib has one timeout for everything. These classes use it for connecting, and stall_s for each later wait.
class _HttpConnection(http.client.HTTPConnection):
    stall_s = STALL_S

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self.stall_s)


class _HttpsConnection(http.client.HTTPSConnection):
    stall_s = STALL_S

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(self.stall_s)


class _Http(urllib.request.HTTPHandler):
    def __init__(self, stall_s: float) -> None:
        super().__init__()
        self._stall_s = stall_s

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        def connection(host: str, /, **settings: Any) -> http.client.HTTPConnection:
            made = _HttpConnection(host, **settings)
            made.stall_s = self._stall_s
            return made

        return self.do_open(connection, request)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, stall_s: float) -> None:
        super().__init__()
        self._stall_s = stall_s
        self._tls = ssl.create_default_context()

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        def connection(host: str, /, **settings: Any) -> http.client.HTTPConnection:
            made = _HttpsConnection(host, context=self._tls, **settings)
            made.stall_s = self._stall_s
            return made

        return self.do_open(connection, request)


class ShownProgress:
    """Prints the progress of a download: one changing line on a terminal, else a line for every tenth.

    ``stream``: stderr by default.
    """

    def __init__(self, name: str, stream: TextIO | None = None) -> None:
        self._name = name
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._started = time.monotonic()
        self._shown_at = 0.0
        self._tenth = 0
        self._open_line = False

    def __call__(self, done: int, total: int | None) -> None:
        """Show ``done`` of ``total`` bytes."""
        now = time.monotonic()
        finished = done == total
        if self._terminal:
            if finished or now - self._shown_at > 0.1:
                self._shown_at = now
                self._open_line = not finished
                print(
                    f"\r{self._line(done, total, now)}\033[K",
                    end="\n" if finished else "",
                    file=self._stream,
                    flush=True,
                )
        elif total and (tenth := 10 * done // total) > self._tenth:
            self._tenth = tenth
            print(self._line(done, total, now), file=self._stream, flush=True)

    def close(self) -> None:
        """End the line that a broken download left open, so that the next message starts a new one."""
        if self._open_line:
            self._open_line = False
            print(file=self._stream, flush=True)

    def _line(self, done: int, total: int | None, now: float) -> str:
        rate = done / 1e6 / max(now - self._started, 1e-3)
        share = (
            f"{100 * done // total:3d} %, {done / 1e6:.1f} of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"
        )
        return f"{self._name}: {share}, {rate:.1f} MB/s"
