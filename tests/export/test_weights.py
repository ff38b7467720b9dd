"""Downloading published weights: from a server that behaves, and from every kind that does not."""

from __future__ import annotations

import errno
import hashlib
import io
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from export import weights
from export.weights import ShownProgress, WeightsUnavailable, fetch
from export.zoo import ZOO, ZooRow

CONTENT = bytes(range(256)) * 12_000  # 3 MB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Published(BaseHTTPRequestHandler):
    """The path says how the server behaves."""

    def do_GET(self) -> None:
        self.server.requested.append(self.path)  # type: ignore[attr-defined]
        match self.path.split("/")[1]:
            case "ok":
                self._answer(CONTENT)
            case "wrong":
                self._answer(CONTENT[::-1])
            case "truncated":
                self._answer(CONTENT[:1_000_000], length=len(CONTENT))
            case "moved":
                self.send_response(302)
                self.send_header("Location", "/ok/model-x.pth")
                self.end_headers()
            case "stalled":
                self._answer(CONTENT[:1_000_000], length=len(CONTENT))
                self.server.ended.wait(30)  # type: ignore[attr-defined]
            case "silent":
                self.server.ended.wait(30)  # type: ignore[attr-defined]
            case _:
                self.send_error(404)

    def _answer(self, content: bytes, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, format: str, *arguments: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = ThreadingHTTPServer(("127.0.0.1", 0), Published)
    running.daemon_threads = True
    running.block_on_close = False
    running.requested = []  # type: ignore[attr-defined]
    running.ended = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=running.serve_forever, args=(0.05,))
    thread.start()
    yield running
    running.ended.set()  # type: ignore[attr-defined]
    running.shutdown()
    running.server_close()
    thread.join()


def row_at(url: str, digest: str = DIGEST) -> ZooRow:
    return replace(ZOO["efficientnet_b0"], url=url, sha256_prefix=digest[:8])


def at(server: ThreadingHTTPServer, behaviour: str) -> ZooRow:
    return row_at(f"http://127.0.0.1:{server.server_port}/{behaviour}/model-{DIGEST[:8]}.pth")


def nothing(done: int, total: int | None) -> None: ...


def test_a_file_is_downloaded_once(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    row, seen = at(server, "ok"), list[tuple[int, int | None]]()
    path = fetch(row, tmp_path / "downloads", lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "downloads" / row.file
    assert path.read_bytes() == CONTENT
    assert path.stat().st_mode & 0o777 == 0o644
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert seen == sorted(seen)
    assert fetch(row, tmp_path / "downloads", nothing) == path
    assert len(server.requested) == 1  # type: ignore[attr-defined]
    assert [p.name for p in (tmp_path / "downloads").iterdir()] == [row.file]


def test_a_redirect_is_followed(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    assert fetch(at(server, "moved"), tmp_path, nothing).read_bytes() == CONTENT


def test_a_file_put_there_by_hand_needs_no_server(tmp_path: Path) -> None:
    row = row_at("http://127.0.0.1:9/model-x.pth")
    (tmp_path / row.file).write_bytes(CONTENT)
    assert fetch(row, tmp_path, nothing) == tmp_path / row.file


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ("missing", "HTTP 404"),
        ("wrong", f"what came has the SHA-256 {hashlib.sha256(CONTENT[::-1]).hexdigest()[:16]}"),
        ("truncated", f"the connection ended after 1000000 of {len(CONTENT)} bytes"),
        ("stalled", "timed out"),
        ("silent", "timed out"),
    ],
)
def test_a_download_that_fails_says_what_to_do_and_leaves_nothing(
    server: ThreadingHTTPServer, tmp_path: Path, behaviour: str, reason: str
) -> None:
    row, started = at(server, behaviour), time.monotonic()
    with pytest.raises(WeightsUnavailable) as failed:
        fetch(row, tmp_path, nothing, stall_s=0.3)
    assert time.monotonic() - started < 15
    before, why = (
        f"the weights of efficientnet_b0 could not be had from {row.url} (",
        failed.value.message.split("(")[1],
    )
    by_hand = f"put the file by hand at {tmp_path / row.file} (its SHA-256 begins with {DIGEST[:8]}), "
    by_hand += "or name a mirror in EKIBEN_WEIGHTS_URL"
    assert why.startswith(reason)
    assert failed.value.message == f"{before}{why.split(')')[0]}); {by_hand}"
    assert list(tmp_path.iterdir()) == []


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, never listening
        row = row_at(f"http://127.0.0.1:{taken.getsockname()[1]}/model-x.pth")
        with pytest.raises(WeightsUnavailable, match="Connection refused"):
            fetch(row, tmp_path, nothing)
    assert list(tmp_path.iterdir()) == []


def test_a_proxy_of_the_environment_is_used(
    server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(WeightsUnavailable, match="HTTP 404"):
        fetch(row_at("http://weights.invalid/model-x.pth"), tmp_path, nothing)
    assert server.requested == ["http://weights.invalid/model-x.pth"]  # type: ignore[attr-defined]


def test_a_wrong_file_stays_until_a_right_one_replaces_it(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    row = at(server, "missing")
    (tmp_path / row.file).write_bytes(b"mine")
    with pytest.raises(WeightsUnavailable, match=f"the file that lies at {tmp_path / row.file} has another checksum"):
        fetch(row, tmp_path, nothing)
    assert (tmp_path / row.file).read_bytes() == b"mine"
    assert fetch(at(server, "ok"), tmp_path, nothing).read_bytes() == CONTENT


def test_a_full_disk(server: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "_download", full)
    row = at(server, "ok")
    with pytest.raises(
        WeightsUnavailable, match=rf"from {row.url} have about 21 MB, and {tmp_path} has room for \d+ MB: .*"
    ):
        fetch(row, tmp_path, nothing)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(server: ThreadingHTTPServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsUnavailable, match=r"downloads cannot be written: Not a directory"):
        fetch(at(server, "ok"), tmp_path / "file" / "downloads", nothing)


def test_progress_is_a_line_for_every_tenth() -> None:
    stream = io.StringIO()
    progress = ShownProgress("net", stream)
    for done in range(0, 10_000_001, 500_000):
        progress(done, 10_000_000)
    progress.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("net:  10 %, 1.0 of 10.0 MB, ")
    assert lines[-1].startswith("net: 100 %, 10.0 of 10.0 MB, ")
    assert lines[-1].endswith(" MB/s")


def test_progress_on_a_terminal_rewrites_one_line_and_ends_it() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    progress = ShownProgress("net", stream)
    progress(5_000_000, 10_000_000)
    progress.close()
    progress.close()
    assert stream.getvalue().startswith("\rnet:  50 %, 5.0 of 10.0 MB, ")
    assert stream.getvalue().count("\n") == 1
