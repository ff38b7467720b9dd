"""Shutdown signals: a callback at the moment of the signal, before the server waits for its open responses."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any


def on_shutdown_signal(then: Callable[[], object]) -> None:
    """Call ``then`` on the running loop when SIGTERM or SIGINT arrives; the earlier handlers are called too.

    To be called in the main thread.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        _chain(number, then, loop)


def _chain(number: signal.Signals, then: Callable[[], object], loop: asyncio.AbstractEventLoop) -> None:
    before: Any = signal.getsignal(number)

    def handle(signum: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(then)
        if callable(before):
            before(signum, frame)

    signal.signal(number, handle)
