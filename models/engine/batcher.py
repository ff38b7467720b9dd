"""The batcher: items wait in one queue per model, and threads take them in batches."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from ekiben.errors import CallerLeft, DeadlineExceeded, Overloaded, Refusal, Unavailable
from models.engine.batch_size import BatchSizer
from models.engine.cancellation import RunCancellation
from models.results import Timing

P = TypeVar("P")
Q = TypeVar("Q")
R = TypeVar("R")
P_contra = TypeVar("P_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

log = logging.getLogger(__name__)


class BatchSteps(Protocol[P_contra, Q, R_co]):
    """The work of a queue: three steps that a thread of the batcher runs one after the other."""

    def prepare(self, payload: P_contra) -> tuple[Hashable, Q]:
        """A key and the input of the run for one item; items with equal keys may share a run."""
        ...

    def run(self, prepared: Sequence[Q], cancellation: RunCancellation) -> Collection[Any]:
        """The outputs of a batch, one per item, in order. ``cancellation`` stops it once every caller has left."""
        ...

    def finish(self, output: Any, prepared: Q, payload: P_contra) -> R_co:
        """The result of one item from its output."""
        ...


@dataclass(slots=True, eq=False)
class Item(Generic[P, R]):
    """One waiting request.

    ``answer`` is called exactly once, on a thread of the batcher: with a result and its timing, or with an error.
    ``bytes``: what the payload takes while it waits. ``deadline`` and ``submitted``: of ``time.monotonic``.
    ``left``: the caller is gone; ``abandoned``: a run for it may be stopped.
    """

    payload: P
    bytes: int
    deadline: float
    answer: Callable[[R | None, Timing | None, BaseException | None], None]
    left: bool = False
    abandoned: bool = False
    cancellation: RunCancellation | None = None
    prepare_ms: float = 0.0
    submitted: float = field(default_factory=time.monotonic)

    def leave(self, *, break_off: bool = False) -> None:
        """Note that the caller is gone: the item is refused with CallerLeft instead of being computed.

        ``break_off``: also stop its run, once every item of that run was left with ``break_off``.
        """
        self.left = True
        if break_off:
            self.abandoned = True
            if self.cancellation is not None:
                self.cancellation.cancel_if_abandoned()


@dataclass(slots=True, eq=False)
class ModelQueue(Generic[P, R]):
    """The queue of one model. ``max_concurrency``: threads that may run it at once; ``running``: those that do."""

    key: Hashable
    work: BatchSteps[P, Any, R]
    max_concurrency: int
    sizer: BatchSizer
    items: deque[Item[P, R]] = field(default_factory=deque)
    running: int = 0

    def wait_s(self) -> float:
        """Seconds until an item that arrives now would be taken, estimated from past runs; 0 before the first run."""
        cost = self.sizer.per_item_s()
        return 0.0 if cost is None else cost * len(self.items) / self.max_concurrency


class Batcher:
    """Threads that serve the queues of all models in turn.

    No timer is waited for: an idle thread takes an item as it comes; while all threads are busy, items gather, and the
    next free thread takes as many as BatchSizer says for their model. An error belongs to its item alone.
    ``max_bytes`` bounds the payloads that wait in all queues. ``observe``: called after each run with the queue's key,
    the number of items and seconds.
    """

    def __init__(
        self, threads: int, max_bytes: int, observe: Callable[[Hashable, int, float], None] | None = None
    ) -> None:
        self.threads = threads
        self.max_bytes = max_bytes
        self.waiting_bytes = 0
        self._observe = observe
        self._queues: dict[Hashable, ModelQueue[Any, Any]] = {}
        self._turn: deque[ModelQueue[Any, Any]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, name=f"batcher-{n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def open_queue(
        self, key: Hashable, work: BatchSteps[P, Any, R], *, max_concurrency: int | None = None, max_batch: int = 64
    ) -> ModelQueue[P, R]:
        """The queue of ``key``, made anew if there is none or it has other work.

        ``max_concurrency``: threads that may run it at once; None: all. ``max_batch``: items that a run may hold.
        """
        with self._changed:
            queue = self._queues.get(key)
            if queue is None or queue.work is not work:
                queue = ModelQueue(key, work, min(max_concurrency or self.threads, self.threads), BatchSizer(max_batch))
                self._queues[key] = queue
            return queue

    def close_queue(self, key: Hashable) -> None:
        """Forget a queue. Its waiting items are still served."""
        with self._changed:
            self._queues.pop(key, None)

    def submit(self, queue: ModelQueue[P, R], item: Item[P, R]) -> None:
        """Queue an item.

        Overloaded when more than ``max_bytes`` would wait, or the item could not start before its deadline;
        Unavailable after ``close``. It is not queued then.
        """
        with self._changed:
            if self._closed:
                raise Unavailable("the server is stopping", code="stopping", retry_after_s=5)
            wait = queue.wait_s()
            if self.waiting_bytes + item.bytes > self.max_bytes and self.waiting_bytes:
                raise Overloaded("too many images are waiting", retry_after_s=max(1, math.ceil(wait)))
            if item.submitted + wait > item.deadline:
                raise Overloaded(
                    f"{len(queue.items)} requests wait for this model, about {wait:.0f} s",
                    retry_after_s=max(1, math.ceil(wait)),
                )
            self.waiting_bytes += item.bytes
            if not queue.items:
                self._turn.append(queue)
            queue.items.append(item)
            self._changed.notify()

    def depth(self, key: Hashable) -> int:
        """Items waiting for ``key``."""
        queue = self._queues.get(key)
        return len(queue.items) if queue else 0

    def batch_size(self, key: Hashable) -> int:
        """The batch size learned for ``key`` so far."""
        queue = self._queues.get(key)
        return queue.sizer.size if queue else 1

    def close(self, timeout_s: float = 20.0) -> None:
        """Refuse new items, serve those that wait, then stop the threads. Returns after ``timeout_s`` at the latest."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        end = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _serve(self) -> None:
        while True:
            with self._changed:
                while (taken := self._take()) is None:
                    if self._closed and not self._turn:
                        self._changed.notify_all()  # the other threads wait for an item: there will be none
                        return
                    self._changed.wait()
            queue, items, dead = taken
            for item in dead:
                _refuse_dead(item)
            if items:
                started = time.monotonic()
                prepared = 0
                try:
                    prepared = run_batch(queue.work, items, started)
                except BaseException:  # the thread must survive; run_batch has answered each item
                    log.exception("a batch failed outside its items")
                took = time.monotonic() - started
            with self._changed:
                queue.running -= 1
                if items and prepared == len(items):
                    queue.sizer.observe(len(items), took)
                if queue.items:
                    self._changed.notify()
            if items and prepared and self._observe is not None:
                try:
                    self._observe(queue.key, prepared, took)
                except Exception:
                    log.exception("a run could not be observed")

    def _take(self) -> tuple[ModelQueue[Any, Any], list[Item[Any, Any]], list[Item[Any, Any]]] | None:
        """The next queue in turn below its max_concurrency, the items to run, and those that are left or too late."""
        for _ in range(len(self._turn)):
            queue = self._turn.popleft()
            if queue.running >= queue.max_concurrency:
                self._turn.append(queue)
                continue
            want = queue.sizer.take(len(queue.items))
            items: list[Item[Any, Any]] = []
            dead: list[Item[Any, Any]] = []
            now = time.monotonic()
            while queue.items and len(items) < want:
                item = queue.items.popleft()
                self.waiting_bytes -= item.bytes
                (dead if item.left or now > item.deadline else items).append(item)
            if queue.items:
                self._turn.append(queue)
                self._changed.notify()
            queue.running += 1
            return queue, items, dead
        return None


def run_batch(work: BatchSteps[P, Q, R], items: Sequence[Item[P, R]], started: float) -> int:
    """Prepare, run and finish the items; calls ``answer`` of each once, with its own result or its own error.

    Returns how many could be prepared, 0 for a run that was stopped: only the time of a batch of which all items were
    prepared says what its size costs. ``started``: when the batch was taken, of ``time.monotonic``.
    """
    cancellation = RunCancellation(lambda: all(item.abandoned for item in items))
    for item in items:
        item.cancellation = cancellation
    prepared = _run_all(work, items, started, cancellation)
    return 0 if cancellation.abandoned else prepared


def _run_all(
    work: BatchSteps[P, Q, R], items: Sequence[Item[P, R]], started: float, cancellation: RunCancellation
) -> int:
    groups: dict[Hashable, list[tuple[Item[P, R], Q]]] = {}
    for item in items:
        if item.left:
            _refuse_dead(item)
            continue
        begin = time.perf_counter()
        try:
            key, prepared = work.prepare(item.payload)
            item.prepare_ms = (time.perf_counter() - begin) * 1e3
        except BaseException as error:
            _answer(item, None, None, error)
            continue
        groups.setdefault(key, []).append((item, prepared))
    for group in groups.values():
        _run_group(work, group, started, cancellation)
    return sum(len(group) for group in groups.values())


def _run_group(
    work: BatchSteps[P, Q, R], group: list[tuple[Item[P, R], Q]], started: float, cancellation: RunCancellation
) -> None:
    begin = time.perf_counter()
    try:
        outputs = work.run([prepared for _, prepared in group], cancellation)
        if len(outputs) != len(group):
            raise RuntimeError(f"the network gave {len(outputs)} rows for a batch of {len(group)}")
    except BaseException as error:
        if all(item.abandoned for item, _ in group):
            for item, _ in group:
                _refuse_dead(item)
        elif len(group) == 1:
            _answer(group[0][0], None, None, error)
        else:  # run each alone: only the item that causes the error fails
            for member in group:
                _run_group(work, [member], started, cancellation)
        return
    inference_ms = (time.perf_counter() - begin) * 1e3
    for (item, prepared), output in zip(group, outputs, strict=True):
        begin = time.perf_counter()
        try:
            result = work.finish(output, prepared, item.payload)
        except BaseException as error:
            _answer(item, None, None, error)
            continue
        finish_ms = (time.perf_counter() - begin) * 1e3
        waited_ms = (started - item.submitted) * 1e3
        timing = Timing(waited_ms, inference_ms, len(group), item.prepare_ms, finish_ms)
        _answer(item, result, timing, None)


def _answer(item: Item[P, R], result: R | None, timing: Timing | None, error: BaseException | None) -> None:
    try:
        item.answer(result, timing, error)
    except Exception:  # the caller's code; the rest of the batch goes on
        log.exception("an answer was not taken")


def _refuse_dead(item: Item[Any, Any]) -> None:
    error: Refusal
    if item.left:
        error = CallerLeft("the caller left before its turn")
    else:
        error = DeadlineExceeded("the request waited longer than its deadline", retry_after_s=1)
    _answer(item, None, None, error)
