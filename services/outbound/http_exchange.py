"""HTTP requests to addresses that users name, guarded against server-side request forgery: only public addresses.

URLs of datasets are fetched, and webhooks sent, through this module alone.
"""

from __future__ import annotations

import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, quote, urlsplit

from ekiben.errors import BadInput

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
# Public by its number, but answered by the host of a virtual machine in Azure.
_CLOUD: Final = (ipaddress.ip_network("168.63.129.16/32"),)


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


def is_public(address: str) -> bool:
    """Whether the IP address is public, and embeds no other address. It may be one of this machine."""
    ip = ipaddress.ip_address(address.split("%")[0])
    inside = any(ip.version == network.version and ip in network for network in (*_EMBEDDING_IPV4, *_RESERVED, *_CLOUD))
    return ip.is_global and not inside and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


@dataclass(slots=True)
class Exchange:
    """Requests that together have ``timeout_s`` until ``deadline``, by ``time.monotonic()``.

    A name is resolved once per request, all its addresses must be public unless ``allow_private``, and the connection
    goes to the address that was checked, so that a name which resolves to another one meanwhile (DNS rebinding) gains
    nothing. A public address of this machine is not asked either, unless ``allow_private``. Redirects are not followed.
    Methods raise BadInput, codes ``url_...``.
    """

    network: Network
    deadline: float
    timeout_s: float
    allow_private: bool

    @classmethod
    def begin(cls, timeout_s: float, *, allow_private: bool, network: Network | None = None) -> Exchange:
        """One whose time begins now."""
        return cls(network or Network(), time.monotonic() + timeout_s, timeout_s, allow_private)

    def left_s(self) -> float:
        """Seconds until the deadline; BadInput after it."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise self.too_slow()
        return left

    def too_slow(self) -> BadInput:
        """What is raised after the deadline."""
        return BadInput(f"the URL did not answer in full within {self.timeout_s:g} s", code="url_timeout")

    def address(self, parts: SplitResult) -> tuple[str, int]:
        """Address and port to connect to for a parsed URL."""
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
            addresses = found.get(timeout=self.left_s())
        except queue.Empty:
            raise self.too_slow() from None
        if not addresses:
            raise BadInput(f"the host of the URL is not known: {host!r}", code="url_unknown_host")
        if not self.allow_private and not all(is_public(address) for address in addresses):
            raise _private(host)
        return addresses[0], port

    @contextmanager
    def response(
        self, method: str, parts: SplitResult, headers: Mapping[str, str], body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        """The response to one request, whose body is to be read within the block."""
        connection = self._connection(parts, *self.address(parts))
        # A server that sends a byte now and then never exceeds the timeout of a read: the timer closes the socket.
        watch = threading.Timer(max(0.0, self.deadline - time.monotonic()), _shut, [connection.sock])
        watch.daemon = True
        watch.start()
        try:
            try:
                connection.request(method, _path(parts), body, {"User-Agent": "ekiben", **headers})
                answer = connection.getresponse()
            except (OSError, http.client.HTTPException, ValueError):
                raise BadInput("the URL's host does not answer as HTTP says", code="url_broken") from None
            yield answer
        except BadInput as error:
            if error.code == "url_broken":
                self.left_s()
            raise
        finally:
            watch.cancel()
            connection.close()

    def _connection(self, parts: SplitResult, address: str, port: int) -> http.client.HTTPConnection:
        """A connection to ``address``; TLS checks the certificate for the host of the URL."""
        host = parts.hostname or ""
        watch: threading.Timer | None = None
        try:
            sock = self.network.connect(address, port, self.left_s())
            # A public address of this machine: its services may listen there, guarded by a firewall alone.
            if not self.allow_private and sock.getsockname()[0] == sock.getpeername()[0]:
                sock.close()
                raise _private(host)
            watch = threading.Timer(self.left_s(), _shut, [sock])
            watch.daemon = True
            watch.start()
            if parts.scheme == "https":
                sock = self.network.tls().wrap_socket(sock, server_hostname=host)
            sock.settimeout(self.left_s())
        except ssl.SSLCertVerificationError as error:
            raise BadInput(
                f"the host of the URL has no valid certificate: {error.verify_message}", code="url_certificate"
            ) from None
        except (OSError, ValueError):
            self.left_s()
            raise BadInput(f"no connection to the host of the URL: {host!r}", code="url_unreachable") from None
        finally:
            if watch is not None:
                watch.cancel()
        connection = http.client.HTTPConnection(parts.netloc)
        connection.sock = sock
        return connection


def parse(url: str) -> SplitResult:
    """The parts of a URL that may be asked, as far as that can be checked without the network. BadInput."""
    try:
        parts = urlsplit(url)
        port_is_good = parts.port != 0
        (parts.hostname or "").encode("idna")
    except ValueError:
        raise BadInput("the URL is malformed", code="url_malformed") from None
    if parts.scheme not in _PORTS:
        raise BadInput("only http and https URLs are accepted", code="url_scheme")
    if parts.username is not None or parts.password is not None:
        raise BadInput("a URL with a user name or a password is not accepted", code="url_credentials")
    if not parts.hostname or not port_is_good or any(ord(letter) <= 32 or ord(letter) == 127 for letter in url):
        raise BadInput("the URL is malformed", code="url_malformed")
    return parts


def _private(host: str) -> BadInput:
    return BadInput(
        f"the host of the URL is not on the public internet: {host!r}; the setting that allows private addresses is "
        "off",
        code="url_private",
    )


def _path(parts: SplitResult) -> str:
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    return f"{path}?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?')}" if parts.query else path


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:  # it is closed already
        return
