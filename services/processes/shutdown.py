"""Stopping: knowing at once that this process was asked to end, before the server waits for its open answers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any


def on_shutdown_signal(then: Callable[[], object]) -> None:
    """Call ``then`` on this loop when SIGTERM or SIGINT comes; whoever handled these before still does.

    For the main thread.
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
