"""Work for queues of a batcher whose answers, errors and pace the test decides, and callers that keep what they got."""

from __future__ import annotations

import threading
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ekiben.errors import BadImage
from models.engine.batch_run import Item
from models.engine.batcher import Batcher, ModelQueue
from models.results import Timing

POISON = -1


@dataclass(frozen=True)
class Order:
    """The answer is twice the ``number``. ``trouble`` names the step that fails for it; POISON fails its batch."""

    number: int
    shape: tuple[int, ...] = (2,)
    trouble: str = ""


@dataclass
class Kitchen:
    """Work that remembers what it did. ``gate`` holds every run until it is opened."""

    fixed_s: float = 0.0
    each_s: float = 0.0
    gate: threading.Event = field(default_factory=threading.Event)
    prepared: list[int] = field(default_factory=list)
    batches: list[list[int]] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def prepare(self, payload: Order) -> tuple[Hashable, tuple[int, str]]:
        with self.lock:
            self.prepared.append(payload.number)
        if payload.trouble == "prepare":
            raise BadImage(f"image {payload.number} is broken")
        return payload.shape, (payload.number, f"prepared {payload.number}")

    def run(self, batch: Sequence[tuple[int, str]], cancellation: object = None) -> list[int]:
        numbers = [number for number, _ in batch]
        with self.lock:
            self.batches.append(numbers)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        self.entered.release()
        try:
            self.gate.wait(20)
            if self.fixed_s or self.each_s:
                time.sleep(self.fixed_s + self.each_s * len(batch))
            if POISON in numbers:
                raise FloatingPointError("poison")
            return [2 * number for number in numbers]
        finally:
            with self.lock:
                self.running -= 1

    def finish(self, output: int, prepared: tuple[int, str], payload: Order) -> tuple[int, str]:
        if payload.trouble == "finish":
            raise ZeroDivisionError(f"answer {payload.number}")
        return output, prepared[1]


def open_kitchen(fixed_s: float = 0.0, each_s: float = 0.0) -> Kitchen:
    """One whose gate is open."""
    kitchen = Kitchen(fixed_s, each_s)
    kitchen.gate.set()
    return kitchen


class Caller:
    """One request: what was answered, each time, and when."""

    def __init__(self, order: Order, size: int, deadline: float) -> None:
        self.answers: list[tuple[Any, Timing | None, BaseException | None]] = []
        self.order = order
        self._answered = threading.Event()
        self.item: Item[Order, Any] = Item(order, size, deadline, self._answer)

    def _answer(self, result: Any, timing: Timing | None, error: BaseException | None) -> None:
        self.answers.append((result, timing, error))
        self._answered.set()

    def wait(self) -> tuple[Any, Timing | None, BaseException | None]:
        assert self._answered.wait(20), f"{self.order} was never answered"
        return self.answers[0]

    @property
    def result(self) -> int:
        """The number that came back; raises what came instead of one."""
        result, _, error = self.wait()
        if error is not None:
            raise error
        assert result[1] == f"prepared {self.order.number}"
        return int(result[0])

    @property
    def timing(self) -> Timing:
        timing = self.wait()[1]
        assert timing is not None
        return timing


def request(
    batcher: Batcher, queue: ModelQueue[Any, Any], order: Order | int, *, size: int = 1, timeout_s: float = 30.0
) -> Caller:
    """Submit; the caller waits elsewhere."""
    given = order if isinstance(order, Order) else Order(order)
    caller = Caller(given, size, time.monotonic() + timeout_s)
    batcher.submit(queue, caller.item)
    return caller


class Held:
    """A queue with one thread, in which one run waits at the gate: what is asked now gathers to one batch."""

    def __init__(self, batcher: Batcher, batch: int = 8) -> None:
        self.batcher = batcher
        self.kitchen = Kitchen()
        self.queue = batcher.open_queue("held", self.kitchen, max_concurrency=1)
        self.first = request(batcher, self.queue, 1000)
        assert self.kitchen.entered.acquire(timeout=10)
        self.queue.sizer.size = batch

    def request(self, order: Order | int, **more: Any) -> Caller:
        return request(self.batcher, self.queue, order, **more)

    def open(self) -> None:
        self.kitchen.gate.set()
        assert self.first.result == 2000
