"""Shutdown signals: a callback at the moment of the signal, and the end of the process within a time after it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio

log = logging.getLogger(__name__)

STOP_S = 20.0
"""Seconds after SIGTERM within which everything has ended that ``python -m services`` started."""

IN_FLIGHT_S = 10.0
"""Seconds that requests in flight get; what is not answered then is refused."""

FORCE_S = 16.0
"""Seconds after which a process ends whatever it does: a node of a graph, or a thread in C, cannot be stopped."""

OVERDUE_STATUS = 4
"""Exit status of a process that did not end in time by itself."""


def end_within(seconds: float = FORCE_S) -> None:
    """End this process ``seconds`` from now at the latest, whatever its threads do then."""
    timer = threading.Timer(seconds, _end)
    timer.name, timer.daemon = "end", True
    timer.start()


def _end() -> None:
    log.error("the process did not stop in time, and is ended")
    os._exit(OVERDUE_STATUS)


def end_after_signal() -> None:
    """End this process FORCE_S after SIGTERM or SIGINT at the latest; the earlier handlers are called too.

    To be called in the main thread.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        before: Any = signal.getsignal(number)

        def handle(signum: int, frame: FrameType | None, before: Any = before) -> None:
            end_within()
            if callable(before):
                before(signum, frame)

        signal.signal(number, handle)


def on_shutdown_signal(then: Callable[[], object]) -> None:
    """Call ``then`` on the running loop when SIGTERM or SIGINT arrives; the earlier handlers are called too.

    To be called in the main thread.
    """
    import asyncio  # late: the launcher imports the times above, and should stay small

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
