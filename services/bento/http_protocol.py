"""The HTTP connections of a process: uvicorn's protocol with time limits, a bound on their number, and closes that let
the client read why."""

# ruff: noqa: D102  (the methods that asyncio, httptools and uvicorn call)
from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, ClassVar

import uvicorn.config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from services import metrics
from services.bento.connection_limits import OVER_LIMIT, ConnectionLimits

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 * 1024
"""Of the request line and all headers."""

LINGER_BYTES = 1 << 30
LINGER_S = 30.0
LINGER_IDLE_S = 5.0
"""What a client still sends after the response is read and thrown away, up to so many bytes, for so many seconds, and
as long as it does not pause for LINGER_IDLE_S. Closed at once, the connection would be reset, and the client would see
a broken pipe instead of the status."""

STALLED_WRITE_S = 60.0
"""Seconds without a byte that the client takes of a response."""

_SPARE = 64  # connections beyond the bound that may ask, to be answered 503; further ones are closed without a word
_OVER_LIMIT_S = 2.0  # seconds that they have to ask
_LOG_EVERY_S = 60.0

_REFUSAL = b"HTTP/1.1 %b\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"


def install(limits: ConnectionLimits) -> None:
    """Have uvicorn servers that are started in this process from now on use GuardedProtocol with ``limits``."""
    GuardedProtocol.limits = limits
    # BentoML starts uvicorn, and passes no protocol: uvicorn looks up the name "auto".
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:GuardedProtocol"


class _Transport:
    """A transport whose ``close`` is the protocol's: uvicorn calls it with the last byte of a response."""

    def __init__(self, inner: asyncio.Transport, close: Callable[[], None]) -> None:
        self.inner = inner
        self.write: Callable[[bytes], None] = inner.write
        self.close = close
        self.lingers = False

    def is_closing(self) -> bool:
        return self.lingers or self.inner.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class GuardedProtocol(HttpToolsProtocol):
    """One connection. Whatever state it is in, something ends it: a time limit, or the request that is answered."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()
    _logged: ClassVar[float] = -_LOG_EVERY_S

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        if self.limits.keep_alive_s is not None:
            self.timeout_keep_alive = self.limits.keep_alive_s  # type: ignore[assignment]  # call_later takes it
        self._in_head = False
        self._receiving = False  # from the first byte of a request to the last of its body
        self._broken = False  # what comes is no HTTP
        self._head_bytes = self._header_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._discarding = False  # the response is complete and the request is not
        self._discarded = 0
        self._discard_end = self._last_data = 0.0
        self._discard_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._unwritten = 0
        self._over_limit = False

    # The connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = _Transport(transport, self._close)
        super().connection_made(self._transport)  # type: ignore[arg-type]
        most, count = self.limits.max_connections, len(self.connections)
        if most and count > most:
            self._over_limit = True
            metrics.connections_closed.labels("too_many").inc()
            if time.monotonic() - GuardedProtocol._logged >= _LOG_EVERY_S:
                GuardedProtocol._logged = time.monotonic()
                log.warning("connections are refused", extra={"open": count, "most": most})
            if count > most + _SPARE:
                transport.abort()
                return
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head_timer, self._discard_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._head_timer = self._discard_timer = self._write_timer = None
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def shutdown(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self._transport.inner.close()  # a server that stops waits for no client who still sends
        else:
            super().shutdown()

    def handle_websocket_upgrade(self) -> None:
        self._stop_watching_head()
        self.transport = self._transport.inner
        super().handle_websocket_upgrade()

    # What the client sends

    def data_received(self, data: bytes) -> None:
        self._last_data = self.loop.time()
        if self._discarding:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
                self._end("unread_body")
                return
            if self._transport.lingers:
                return
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(b"431 Request Header Fields Too Large", "header_too_large")
                return
        # Stray line breaks between two requests stop the keep-alive timer, too.
        idle = not self._receiving and (self.cycle is None or self.cycle.response_complete)
        if self._in_head or (idle and self.timeout_keep_alive_task is None):
            self._watch_head()
        elif self._head_timer is not None:
            self._stop_watching_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._receiving = self._in_head = True
        self._head_bytes = self._header_bytes = 0
        if self._over_limit:
            self.scope[OVER_LIMIT] = True  # type: ignore[literal-required]

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_header(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._count_header(len(self.url))
        self._in_head = False
        super().on_headers_complete()

    def _count_header(self, size: int) -> None:
        # data_received counts what comes of a head that is not complete, this what comes in one piece with a body.
        self._header_bytes += size
        if self._header_bytes > MAX_HEAD_BYTES:
            raise ValueError("the head is too large")  # httptools makes an HttpParserError of it

    def on_message_complete(self) -> None:
        self._receiving = False
        super().on_message_complete()
        if self._discarding:
            self._stop_discarding()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def send_400_response(self, msg: str) -> None:
        self._broken = True
        if self._header_bytes > MAX_HEAD_BYTES:
            self._refuse(b"431 Request Header Fields Too Large", "header_too_large")
        else:
            super().send_400_response(msg)

    # What it is sent

    def on_response_complete(self) -> None:
        waiting = bool(self.pipeline)
        super().on_response_complete()
        if waiting or not self._receiving or self._in_head or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        if self.expect_100_continue:
            self._close()  # whether the client sends the body, or its next request, cannot be told
        else:
            self._discard()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _watch_writing(self) -> None:
        if self._write_timer is None:
            self._unwritten = self._transport.inner.get_write_buffer_size()
            self._write_timer = self.loop.call_later(STALLED_WRITE_S, self._check_writing)

    def _check_writing(self) -> None:
        self._write_timer = None
        if self._transport.inner.get_write_buffer_size() >= self._unwritten:
            metrics.connections_closed.labels("unread_response").inc()
            self._transport.inner.abort()
        else:
            self._watch_writing()

    # Time limits and the end

    def _watch_head(self) -> None:
        if self._head_timer is None and not self.transport.is_closing():
            seconds = _OVER_LIMIT_S if self._over_limit else self.limits.header_timeout_s
            self._head_timer = self.loop.call_later(seconds, self._head_is_late)

    def _stop_watching_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._receiving = False  # nothing is under way: the connection is closed at once
            self._refuse(b"408 Request Timeout", "header_timeout")
        else:
            self._end("header_timeout")

    def _refuse(self, status: bytes, reason: str) -> None:
        """Answer what is no whole request, and close."""
        metrics.connections_closed.labels(reason).inc()
        if not self.transport.is_closing() and (self.cycle is None or self.cycle.response_complete):
            self.transport.write(_REFUSAL % (status, len(status) - 4, status[4:]))
        self._close()

    def _close(self) -> None:
        """Close when the client has sent what it is about to send, or the bounds on that are passed."""
        if self.transport.is_closing():
            return
        self._stop_watching_head()
        self._unset_keepalive_if_required()
        inner = self._transport.inner
        if not (self._receiving or self._broken):
            inner.close()
            if inner.get_write_buffer_size():
                self._watch_writing()
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._transport.lingers = True
        self._transport.write = lambda data: None
        if inner.can_write_eof():
            inner.write_eof()
        self.flow.resume_reading()
        self._discard()

    def _discard(self) -> None:
        if not self._discarding:
            self._discarding, self._discarded = True, 0
            self._last_data = self.loop.time()
            self._discard_end = self._last_data + LINGER_S
            self._discard_timer = self.loop.call_later(LINGER_IDLE_S, self._check_discarding)

    def _stop_discarding(self) -> None:
        self._discarding = False
        if self._discard_timer is not None:
            self._discard_timer.cancel()
            self._discard_timer = None

    def _check_discarding(self) -> None:
        end = min(self._last_data + LINGER_IDLE_S, self._discard_end)
        if self.loop.time() >= end:
            self._end("unread_body")
        else:
            self._discard_timer = self.loop.call_at(end, self._check_discarding)

    def _end(self, reason: str) -> None:
        metrics.connections_closed.labels(reason).inc()
        inner = self._transport.inner
        if inner.get_write_buffer_size():
            inner.abort()
        else:
            inner.close()
