"""What holds up an event loop is seen while it does, by name."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import uvloop

from services import metrics
from services.processes import open_files
from services.processes.loop_watchdog import LIMIT_S, LoopWatchdog, is_held_up
from services.processes.open_files import OpenFilesWatch
from tests.waiting import LIMIT_S as PATIENCE_S


class Said(logging.Handler):
    """Lines of the watchdog; ``first`` is set by the first."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[logging.LogRecord] = []
        self.first = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record)
        self.first.set()


@contextmanager
def listening() -> Iterator[Said]:
    said, log = Said(), logging.getLogger("services.processes.loop_watchdog")
    log.addHandler(said)
    try:
        yield said
    finally:
        log.removeHandler(said)


def holds_the_loop_until(seen: threading.Event) -> None:
    assert seen.wait(PATIENCE_S)


def holds_the_interpreter_until(seen: threading.Event) -> None:
    end = time.monotonic() + PATIENCE_S
    while not seen.is_set():
        sum(range(30_000_000))  # C code that does not let another thread run
        assert time.monotonic() < end


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("hold", [holds_the_loop_until, holds_the_interpreter_until])
def test_what_holds_the_loop_is_named_while_it_does(
    factory: Callable[[], asyncio.AbstractEventLoop], hold: Callable[[threading.Event], None]
) -> None:
    count, seconds = metrics.loop_blocked._value.get(), metrics.loop_blocked_seconds._value.get()

    async def main(said: Said) -> None:
        watchdog = LoopWatchdog()
        watchdog.start()
        await asyncio.sleep(0)
        hold(said.first)
        while len(said.lines) < 2:  # the loop goes on, and says so
            await asyncio.sleep(0.01)
        watchdog.stop()

    with listening() as said, asyncio.Runner(loop_factory=factory) as runner:
        runner.run(asyncio.wait_for(main(said), PATIENCE_S))
    held, on = said.lines[:2]
    assert held.getMessage() == "the event loop is held up"
    assert any(frame.endswith(f" {hold.__name__}") for frame in held.__dict__["stack"]), held.__dict__["stack"]
    assert held.__dict__["ms"] >= LIMIT_S * 1e3
    assert on.getMessage() == "the event loop goes on"
    assert metrics.loop_blocked._value.get() > count
    assert metrics.loop_blocked_seconds._value.get() - seconds >= LIMIT_S


def test_the_second_of_two_is_counted_and_not_logged() -> None:
    count = metrics.loop_blocked._value.get()

    async def main() -> None:
        watchdog = LoopWatchdog()
        watchdog.start()
        for number in (1, 2):
            await asyncio.sleep(0.2)
            while metrics.loop_blocked._value.get() < count + number:
                threading.Event().wait(0.01)
        await asyncio.sleep(0.2)
        watchdog.stop()

    with listening() as said:
        asyncio.run(asyncio.wait_for(main(), PATIENCE_S))
    assert [line.getMessage() for line in said.lines].count("the event loop is held up") == 1


def test_a_pause_of_the_whole_process_is_nobody_s_fault() -> None:
    assert not is_held_up(0.2, 0.2, 0.05, LIMIT_S)  # not long enough
    assert is_held_up(0.4, 0.0, 0.05, LIMIT_S)  # a call that waits, such as for a file
    assert is_held_up(36.0, 35.0, 36.0, LIMIT_S)  # a call that computes and keeps the interpreter
    assert is_held_up(36.0, 0.3, 36.0, LIMIT_S)  # one that gets little of the processor
    assert not is_held_up(36.0, 0.01, 36.0, LIMIT_S)  # the process was stopped


def test_it_costs_next_to_nothing() -> None:
    async def main() -> float:
        watchdog = LoopWatchdog()
        watchdog.start()
        begun = time.process_time()
        await asyncio.sleep(1)
        spent = time.process_time() - begun
        watchdog.stop()
        return spent

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert min(runner.run(main()) for _ in range(2)) < 0.05  # of a second; 0.002 measured


def test_a_process_that_runs_out_of_files_says_so_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(os.listdir("/proc/self/fd"))
    watch = OpenFilesWatch()
    for limit in (10 * count, count, count, 10 * count, count):
        monkeypatch.setattr(open_files, "raise_open_files", lambda limit=limit: limit)
        watch.look()
    assert [line.getMessage() for line in caplog.records] == ["too many open files"] * 2
