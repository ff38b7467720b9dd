"""The batcher: items wait in one queue per model, and threads take them in batches."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from ekiben.errors import Overloaded, Refusal, Unavailable
from models.engine.batch_run import BatchSteps, Item, refuse, refuse_dead, run_batch
from models.engine.batch_size import BatchSizer

P = TypeVar("P")
R = TypeVar("R")

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class ModelQueue(Generic[P, R]):
    """The queue of one model. ``max_concurrency``: threads that may run it at once; ``running``: those that do.

    ``refusal``: of every item, once the queue is closed.
    """

    key: Hashable
    work: BatchSteps[P, Any, R]
    max_concurrency: int
    sizer: BatchSizer
    items: deque[Item[P, R]] = field(default_factory=deque)
    running: int = 0
    refusal: Refusal | None = None

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
        self._relieved: set[int] = set()
        self._spares = 0
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

    def close_queue(self, key: Hashable, refusal: Refusal | None = None) -> None:
        """Forget the queues of ``key``. What waits there, or is submitted later, is refused at once with ``refusal``.

        Their runs may never end, and who waits behind one would keep memory and leases until then.
        """
        error = refusal or Unavailable("the model was unloaded meanwhile", code="model_loading", retry_after_s=1)
        waiting: list[Item[Any, Any]] = []
        with self._changed:
            known = self._queues.pop(key, None)
            # Also those that were made anew with other work meanwhile: of a model that was loaded again.
            for queue in {*([known] if known else []), *(one for one in self._turn if one.key == key)}:
                queue.refusal = error
                waiting += queue.items
                queue.items.clear()
            self._turn = deque(queue for queue in self._turn if queue.items)
            self.waiting_bytes -= sum(item.bytes for item in waiting)
            self._changed.notify_all()
        for item in waiting:
            item.withdraw = None
            refuse(item, error)

    def submit(self, queue: ModelQueue[P, R], item: Item[P, R]) -> None:
        """Queue an item.

        Overloaded when more than ``max_bytes`` would wait, or the item could not start before its deadline;
        Unavailable after ``close``, the queue's refusal after ``close_queue``. It is not queued then.
        """
        with self._changed:
            if self._closed:
                raise Unavailable("the server is stopping", code="stopping", retry_after_s=5)
            if queue.refusal is not None:
                raise queue.refusal.with_traceback(None)
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
            item.withdraw = partial(self._withdraw, queue, item)
            self._changed.notify()

    def depth(self, key: Hashable) -> int:
        """Items waiting for ``key``."""
        queue = self._queues.get(key)
        return len(queue.items) if queue else 0

    def batch_size(self, key: Hashable) -> int:
        """The batch size learned for ``key`` so far."""
        queue = self._queues.get(key)
        return queue.sizer.size if queue else 1

    def relieve(self, thread_id: int) -> None:
        """Let a new thread take the place of one whose run takes long; that one ends after its run."""
        with self._changed:
            thread = next((one for one in self._threads if one.ident == thread_id), None)
            if thread is None or self._closed:
                return
            self._relieved.add(thread_id)
            self._threads.remove(thread)
            self._spares += 1
            spare = threading.Thread(target=self._serve, name=f"batcher-spare-{self._spares}", daemon=True)
            self._threads.append(spare)
            spare.start()

    def close(self, timeout_s: float = 20.0) -> None:
        """Refuse new items, serve those that wait, then stop the threads. Returns after ``timeout_s`` at the latest.

        Does not wait for threads that were relieved.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        end = time.monotonic() + timeout_s
        for thread in list(self._threads):
            thread.join(max(0.0, end - time.monotonic()))

    def _withdraw(self, queue: ModelQueue[Any, Any], item: Item[Any, Any]) -> None:
        """Refuse an item that was left, if it still waits."""
        with self._changed:
            if item not in queue.items:
                return
            queue.items.remove(item)
            item.withdraw = None
            self.waiting_bytes -= item.bytes
            if not queue.items:
                self._turn.remove(queue)
                self._changed.notify_all()  # a thread that stops waits for the last item
        refuse_dead(item)

    def _serve(self) -> None:
        while self._serve_batch():
            pass

    def _serve_batch(self) -> bool:
        """Wait for a batch and run it; False where this thread is not needed any more.

        A call per batch: variables of the loop would keep the last images for as long as the thread waits.
        """
        with self._changed:
            while (taken := self._take()) is None:
                if self._closed and not self._turn:
                    self._changed.notify_all()  # the other threads wait for an item: there will be none
                    return False
                self._changed.wait()
        queue, items, dead = taken
        for item in dead:
            refuse_dead(item)
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
            relieved = threading.get_ident() in self._relieved
            self._relieved.discard(threading.get_ident())
            if queue.items:
                self._changed.notify()
        if items and prepared and self._observe is not None:
            try:
                self._observe(queue.key, prepared, took)
            except Exception:
                log.exception("a run could not be observed")
        return not relieved

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
                item.withdraw = None  # it refers to the item
                self.waiting_bytes -= item.bytes
                (dead if item.left or now > item.deadline else items).append(item)
            if queue.items:
                self._turn.append(queue)
                self._changed.notify()
            queue.running += 1
            return queue, items, dead
        return None
