"""Fetching URLs from a server on this machine, under public names that a resolver of the test's own gives out."""

from __future__ import annotations

import gzip
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ekiben.errors import BadInput, Refusal, TooLarge
from services.datasets.importer.fetch import fetch
from services.outbound.http_exchange import Network, is_public
from tests.services.outbound.addresses import PRIVATE, PUBLIC, THIS_MACHINE, connect_as_from_afar

DATA = bytes(range(256)) * 1000


class Site(BaseHTTPRequestHandler):
    """Each path does one thing, good or bad."""

    protocol_version = "HTTP/1.1"
    seen: list[dict[str, str]]

    def do_GET(self) -> None:
        type(self).seen.append({"path": self.path, **{key.lower(): value for key, value in self.headers.items()}})
        path = self.path.partition("?")[0]
        if path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path.startswith("/again/"):
            self.answer(b"", status=307, location=f"/again/{int(path[7:]) - 1}" if path != "/again/0" else "/file")
        else:
            getattr(self, "_" + path.strip("/").replace("-", "_"), self._missing)()

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for key, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _missing(self) -> None:
        self.answer(b"no", status=404)

    def _file(self) -> None:
        self.answer(DATA)

    def _nowhere(self) -> None:
        self.answer(b"", status=302)

    def _zipped(self) -> None:
        self.answer(gzip.compress(DATA), Content_Encoding="gzip")

    def _chunked(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(DATA), 50_000):
            piece = DATA[start : start + 50_000]
            self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def _chunked_short(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"ffff\r\nonly this")
        self.close_connection = True

    def _endless(self) -> None:
        self.send_response(200)
        self.send_header("Connection", "close")
        self.end_headers()
        for _ in range(1000):
            self.wfile.write(DATA)

    def _short(self) -> None:
        self.answer(DATA[:1000], Content_Length=str(len(DATA)))
        self.close_connection = True

    def _drip(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        for _ in range(1000):
            self.wfile.write(b"x")
            time.sleep(0.05)

    def _drip_header(self) -> None:
        for letter in b"HTTP/1.1 200 " + b"O" * 1000:
            self.wfile.write(bytes([letter]))
            time.sleep(0.05)

    def _garbage(self) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n" * 3)
        self.close_connection = True

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the fetching side may hang up
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def site() -> Iterator[ThreadingHTTPServer]:
    Site.seen = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class Names:
    """Every name but those of ``answers`` is public, and public addresses lead to the test's server."""

    def __init__(self, port: int, **answers: list[str]) -> None:
        self.port = port
        self.answers = {name.replace("_", "."): addresses for name, addresses in answers.items()}
        self.requested: list[str] = []
        self.connected: list[str] = []

    def resolve(self, host: str, port: int) -> list[str]:
        self.requested.append(host)
        return self.answers.get(host, [PUBLIC])

    def connect(self, address: str, port: int, timeout_s: float) -> socket.socket:
        self.connected.append(address)
        return connect_as_from_afar(self.port, timeout_s)

    def network(self, tls: Callable[[], ssl.SSLContext] = ssl.create_default_context) -> Network:
        return Network(self.resolve, self.connect, tls)


def fetched(url: str, folder: Path, network: Network | None = None, **options: Any) -> bytes:
    settings = {"max_bytes": 1_000_000, "timeout_s": 5.0, "allow_private": False, **options}
    fetch(url, folder / "file", network=network, **settings)
    return (folder / "file").read_bytes()


@pytest.mark.parametrize("path", ["file", "chunked", "again/4", "file?a=b c&d=%20é#part"])
def test_a_file_is_fetched(path: str, site: ThreadingHTTPServer, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{site.server_port}/{path}".replace(" ", "%20")
    told: list[float] = []
    assert fetched(url, tmp_path, allow_private=True, progress=told.append) == DATA
    assert told == sorted(told)
    assert told[-1] == (1.0 if path != "chunked" else len(DATA) / 1_000_000)
    assert Site.seen[0]["accept-encoding"] == "identity"
    assert "authorization" not in Site.seen[0]


def test_the_name_is_asked_once_and_sent_to_the_host(site: ThreadingHTTPServer, tmp_path: Path) -> None:
    names = Names(site.server_port)
    assert fetched("http://data.example:8080/file", tmp_path, names.network()) == DATA
    assert (names.requested, names.connected) == (["data.example"], [PUBLIC])
    assert Site.seen[0]["host"] == "data.example:8080"


def test_a_name_that_changes_meanwhile_gains_nothing(site: ThreadingHTTPServer, tmp_path: Path) -> None:
    names = Names(site.server_port)
    flips = iter([[PUBLIC], ["127.0.0.1"]])
    network = Network(lambda host, port: next(flips), names.connect)
    assert fetched("http://rebinding.example/file", tmp_path, network) == DATA
    assert names.connected == [PUBLIC]
    assert next(flips) == ["127.0.0.1"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public_are_refused(address: str, site: ThreadingHTTPServer, tmp_path: Path) -> None:
    assert not is_public(address)
    names = Names(site.server_port, inner_example=[PUBLIC, address])
    with pytest.raises(BadInput, match=r"'inner\.example'; the setting that allows private addresses is off") as caught:
        fetched("http://inner.example/file", tmp_path, names.network())
    assert caught.value.code == "url_private"
    assert (names.connected, Site.seen, list(tmp_path.iterdir())) == ([], [], [])


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700:4700::1111", "2a00:1450:4001:80b::200e"])
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("host", THIS_MACHINE)
def test_every_spelling_of_this_machine_is_refused(host: str, site: ThreadingHTTPServer, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        fetched(f"http://{host}:{site.server_port}/file", tmp_path)
    assert caught.value.code in ("url_private", "url_unknown_host")
    assert Site.seen == []


REFUSED = [
    ("ftp", "ftp://data.example/x", BadInput, "url_scheme", "only http and https URLs"),
    ("file", "file:///etc/passwd", BadInput, "url_scheme", "only http and https URLs"),
    ("no scheme", "data.example/x", BadInput, "url_scheme", "only http and https URLs"),
    ("credentials", "http://me:secret@data.example/x", BadInput, "url_credentials", "a user name or a password"),
    ("no host", "http:///x", BadInput, "url_malformed", "the URL is malformed"),
    ("port", "http://data.example:99999/x", BadInput, "url_malformed", "the URL is malformed"),
    ("port 0", "http://data.example:0/x", BadInput, "url_malformed", "the URL is malformed"),
    ("new line", "http://data.example/x\r\nHost: y", BadInput, "url_malformed", "the URL is malformed"),
    ("brackets", "http://[::1/x", BadInput, "url_malformed", "the URL is malformed"),
    ("long label", f"http://{'x' * 70}.example/x", BadInput, "url_malformed", "the URL is malformed"),
    ("unknown host", "http://unknown.example/x", BadInput, "url_unknown_host", "is not known: 'unknown.example'"),
    ("missing", "http://data.example/missing", BadInput, "url_status", "answers with the status 404"),
    ("gzip", "http://data.example/zipped", BadInput, "url_encoding", "the content encoding 'gzip'"),
    ("redirects", "http://data.example/again/5", BadInput, "url_redirect", "redirects more than 5 times"),
    ("to nowhere", "http://data.example/nowhere", BadInput, "url_redirect", "redirects to nowhere"),
    (
        "into our network",
        "http://data.example/to/http://inner.example/file",
        BadInput,
        "url_private",
        "'inner.example'",
    ),
    ("to an address", "http://data.example/to///10.0.0.7/file", BadInput, "url_private", "'10.0.0.7'"),
    ("to a file", "http://data.example/to/file:///etc/passwd", BadInput, "url_scheme", "only http and https"),
    ("with a name", "http://data.example/to/http://a:b@data.example/file", BadInput, "url_credentials", "a user name"),
    ("endless", "http://data.example/endless", TooLarge, "url_too_large", "gives more than 300000 bytes"),
    ("cut off", "http://data.example/short", BadInput, "url_broken", "broke off after 1000 of 256000 bytes"),
    ("cut off in a chunk", "http://data.example/chunked-short", BadInput, "url_broken", "broke off"),
    ("no HTTP", "http://data.example/garbage", BadInput, "url_broken", "does not answer as HTTP says"),
    ("no TLS", "https://data.example/file", BadInput, "url_unreachable", "no connection to the host of the URL"),
]


@pytest.mark.parametrize(("url", "refusal", "code", "sentence"), [pytest.param(*row[1:], id=row[0]) for row in REFUSED])
def test_each_bad_url_is_refused_in_its_own_words(
    url: str, refusal: type[Refusal], code: str, sentence: str, site: ThreadingHTTPServer, tmp_path: Path
) -> None:
    answers = {"inner_example": ["10.1.2.3"], "unknown_example": [], "10_0_0_7": ["10.0.0.7"]}
    names = Names(site.server_port, **answers)
    with pytest.raises(refusal, match=sentence) as caught:
        fetched(url, tmp_path, names.network(), max_bytes=300_000)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []
    assert set(names.connected) <= {PUBLIC}


def test_a_file_that_says_it_is_too_large_is_not_begun(site: ThreadingHTTPServer, tmp_path: Path) -> None:
    with pytest.raises(TooLarge, match="the URL gives 256000 bytes; at most 255999 are accepted"):
        fetched("http://data.example/file", tmp_path, Names(site.server_port).network(), max_bytes=255_999)
    assert len(fetched("http://data.example/file", tmp_path, Names(site.server_port).network(), max_bytes=256_000))


@pytest.mark.parametrize("path", ["drip", "drip-header"])
def test_a_server_that_drips_is_left_in_time(path: str, site: ThreadingHTTPServer, tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(BadInput, match=r"did not answer in full within 0\.5 s") as caught:
        fetched(f"http://data.example/{path}", tmp_path, Names(site.server_port).network(), timeout_s=0.5)
    assert caught.value.code == "url_timeout"
    assert 0.4 < time.monotonic() - begun < 20  # of the 50 s that it drips
    assert list(tmp_path.iterdir()) == []


def test_a_resolver_that_hangs_is_left_in_time(tmp_path: Path) -> None:
    release = threading.Event()
    network = Network(resolve=lambda host, port: ["8.8.8.8"] if release.wait(20) else [])
    with pytest.raises(BadInput, match=r"within 0\.3 s"):
        fetched("http://data.example/file", tmp_path, network, timeout_s=0.3)
    release.set()


def test_a_port_where_nobody_listens(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(BadInput, match=r"no connection to the host of the URL: '127\.0\.0\.1'"):
        fetched(f"http://127.0.0.1:{port}/", tmp_path, allow_private=True)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and its own certificate for data.example."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    key, itself = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=data.example", "-addext", "subjectAltName=DNS:data.example"),
            *("-keyout", key, "-out", itself),
        ],
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_text(key.read_text() + itself.read_text())
    return both


def test_tls_checks_the_name_of_the_url(site: ThreadingHTTPServer, certificate: Path, tmp_path: Path) -> None:
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(certificate)
    site.socket = served.wrap_socket(site.socket, server_side=True)
    names = Names(site.server_port)
    trusting = names.network(lambda: ssl.create_default_context(cafile=str(certificate)))
    assert fetched("https://data.example/file", tmp_path, trusting) == DATA
    assert names.connected == [PUBLIC]
    for url, network in (("https://other.example/file", trusting), ("https://data.example/file", names.network())):
        with pytest.raises(BadInput, match="has no valid certificate") as caught:
            fetched(url, tmp_path, network)
        assert caught.value.code == "url_certificate"
    with pytest.raises(BadInput, match="leads from https to http"):
        fetched("https://data.example/to/http://data.example/file", tmp_path, trusting)
