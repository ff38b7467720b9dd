"""Fetching a file from a URL of a user, guarded against server-side request forgery: only public addresses."""

from __future__ import annotations

import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from ekiben.errors import BadInput, TooLarge

MAX_REDIRECTS: Final = 5
_CHUNK: Final = 1 << 16
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_PORTS: Final = {"http": 80, "https": 443}

# Networks whose addresses embed an IPv4 address: a gateway may route them to a private one.
_EMBEDDING_IPV4: Final = tuple(
    ipaddress.ip_network(network)
    for network in ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")
)
# Not public; not every Python version has them in the table behind ``is_global``.
_RESERVED: Final = tuple(
    ipaddress.ip_network(network)
    for network in ("100.64.0.0/10", "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "fec0::/10")
)


def _resolve(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def _connect(address: str, port: int, timeout_s: float) -> socket.socket:
    return socket.create_connection((address, port), timeout_s)


@dataclass(frozen=True, slots=True)
class Network:
    """Name resolution, connections and TLS; tests replace them."""

    resolve: Callable[[str, int], list[str]] = _resolve
    connect: Callable[[str, int, float], socket.socket] = _connect
    tls: Callable[[], ssl.SSLContext] = ssl.create_default_context


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
    fetching = _Fetch(network or Network(), time.monotonic() + timeout_s, timeout_s, allow_private)
    try:
        fetching.run(url, target, max_bytes, progress)
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def is_public(address: str) -> bool:
    """Whether the IP address is public, and embeds no other address."""
    ip = ipaddress.ip_address(address.split("%")[0])
    inside = any(ip.version == network.version and ip in network for network in (*_EMBEDDING_IPV4, *_RESERVED))
    return ip.is_global and not inside and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


@dataclass(slots=True)
class _Fetch:
    network: Network
    deadline: float
    timeout_s: float
    allow_private: bool

    def run(self, url: str, target: Path, max_bytes: int, progress: Callable[[float], None] | None) -> None:
        for _ in range(MAX_REDIRECTS + 1):
            parts = parse(url)
            address, port = self._address(parts)
            location = self._get(parts, address, port, target, max_bytes, progress)
            if location is None:
                return
            following = urljoin(url, location)
            if parts.scheme == "https" and urlsplit(following).scheme == "http":
                raise BadInput("the URL leads from https to http", code="url_redirect")
            url = following
        raise BadInput(f"the URL redirects more than {MAX_REDIRECTS} times", code="url_redirect")

    def _left_s(self) -> float:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise self._too_slow()
        return left

    def _too_slow(self) -> BadInput:
        return BadInput(f"the URL did not give the file within {self.timeout_s:g} s", code="url_timeout")

    def _address(self, parts: SplitResult) -> tuple[str, int]:
        host = parts.hostname or ""
        port = parts.port or _PORTS[parts.scheme]
        found: queue.SimpleQueue[list[str] | None] = queue.SimpleQueue()

        def look_up() -> None:
            try:
                found.put(self.network.resolve(host, port))
            except (OSError, UnicodeError):
                found.put(None)

        # The system's resolver takes no deadline.
        threading.Thread(target=look_up, daemon=True).start()
        try:
            addresses = found.get(timeout=self._left_s())
        except queue.Empty:
            raise self._too_slow() from None
        if not addresses:
            raise BadInput(f"the host of the URL is not known: {host!r}", code="url_unknown_host")
        if not self.allow_private and not all(is_public(address) for address in addresses):
            raise BadInput(
                f"the host of the URL is not on the public internet: {host!r}; the setting that allows private "
                "addresses is off",
                code="url_private",
            )
        return addresses[0], port

    def _get(
        self,
        parts: SplitResult,
        address: str,
        port: int,
        target: Path,
        max_bytes: int,
        progress: Callable[[float], None] | None,
    ) -> str | None:
        """The location of a redirect; None when the file was written."""
        connection = self._connection(parts, address, port)
        # A server that sends a byte now and then never exceeds the timeout of a read: the timer closes the socket.
        watch = threading.Timer(max(0.0, self.deadline - time.monotonic()), _shut, [connection.sock])
        watch.daemon = True
        watch.start()
        try:
            response = self._request(connection, parts)
            if response.status in _REDIRECTS:
                location = response.getheader("Location")
                if not location:
                    raise BadInput("the URL redirects to nowhere", code="url_redirect")
                return location
            _save(response, target, max_bytes, progress)
            self._left_s()
            return None
        except BadInput as error:
            if error.code == "url_broken":
                self._left_s()
            raise
        finally:
            watch.cancel()
            connection.close()

    @staticmethod
    def _request(connection: http.client.HTTPConnection, parts: SplitResult) -> http.client.HTTPResponse:
        try:
            connection.request("GET", _path(parts), headers={"Accept-Encoding": "identity", "User-Agent": "ekiben"})
            return connection.getresponse()
        except (OSError, http.client.HTTPException, ValueError):
            raise BadInput("the URL's host does not answer as HTTP says", code="url_broken") from None

    def _connection(self, parts: SplitResult, address: str, port: int) -> http.client.HTTPConnection:
        """A connection to ``address``; TLS checks the certificate for the host of the URL."""
        host = parts.hostname or ""
        watch: threading.Timer | None = None
        try:
            sock = self.network.connect(address, port, self._left_s())
            watch = threading.Timer(self._left_s(), _shut, [sock])
            watch.daemon = True
            watch.start()
            if parts.scheme == "https":
                sock = self.network.tls().wrap_socket(sock, server_hostname=host)
            sock.settimeout(self._left_s())
        except ssl.SSLCertVerificationError as error:
            raise BadInput(
                f"the host of the URL has no valid certificate: {error.verify_message}", code="url_certificate"
            ) from None
        except (OSError, ValueError):
            self._left_s()
            raise BadInput(f"no connection to the host of the URL: {host!r}", code="url_unreachable") from None
        finally:
            if watch is not None:
                watch.cancel()
        connection = http.client.HTTPConnection(parts.netloc)
        connection.sock = sock
        return connection


def parse(url: str) -> SplitResult:
    """The parts of a URL that may be fetched, as far as that can be checked without the network. BadInput."""
    try:
        parts = urlsplit(url)
        port_is_good = parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:
        raise BadInput("the URL is malformed", code="url_malformed") from None
    if parts.scheme not in _PORTS:
        raise BadInput("only http and https URLs are fetched", code="url_scheme")
    if parts.username is not None or parts.password is not None:
        raise BadInput("a URL with a user name or a password is not fetched", code="url_credentials")
    if not parts.hostname or not port_is_good or any(ord(letter) <= 32 or ord(letter) == 127 for letter in url):
        raise BadInput("the URL is malformed", code="url_malformed")
    return parts


def _path(parts: SplitResult) -> str:
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    return f"{path}?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else path


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


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # it is closed already
        return
