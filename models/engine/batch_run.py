"""The run of one batch: prepare, run, finish, and each item its own answer or error."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from ekiben.errors import CallerLeft, DeadlineExceeded, ModelDisabled, Refusal
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


@dataclass(frozen=True, slots=True)
class RawOutput:
    """The output of the run for one item, before ``BatchSteps.finish``."""

    output: Any
    prepared: Any


@dataclass(slots=True, eq=False)
class Item(Generic[P, R]):
    """One waiting request.

    ``answer`` is called exactly once, with a result and its timing, or with an error: on a thread of the batcher, or on
    the one that calls ``leave`` or closes the queue while the item waits.
    ``bytes``: what the payload takes while it waits. ``deadline`` and ``submitted``: of ``time.monotonic``.
    ``left``: the caller is gone; ``abandoned``: a run for it may be stopped. ``prepared``: what ``BatchSteps.prepare``
    gave, of an item that is slow to prepare and to finish: it was prepared before it was queued, and is answered with a
    RawOutput. ``waited_ms``: how long it waited before it was queued. ``withdraw``: takes it out of its queue.
    """

    payload: P
    bytes: int
    deadline: float
    answer: Callable[[R | RawOutput | None, Timing | None, BaseException | None], None]
    left: bool = False
    abandoned: bool = False
    cancellation: RunCancellation | None = None
    prepare_ms: float = 0.0
    prepared: tuple[Hashable, Any] | None = None
    waited_ms: float = 0.0
    withdraw: Callable[[], None] | None = None
    submitted: float = field(default_factory=time.monotonic)

    def leave(self, *, break_off: bool = False) -> None:
        """Note that the caller is gone: the item is refused with CallerLeft instead of being computed, at once where it
        still waits.

        ``break_off``: also stop its run, once every item of that run was left with ``break_off``.
        """
        self.left = True
        if break_off:
            self.abandoned = True
        if (withdraw := self.withdraw) is not None:
            withdraw()
        if break_off and (cancellation := self.cancellation) is not None:
            cancellation.cancel_if_abandoned()


def run_batch(work: BatchSteps[P, Q, R], items: Sequence[Item[P, R]], started: float) -> int:
    """Prepare, run and finish the items; calls ``answer`` of each once, with its own result or its own error.

    Returns how many could be prepared, 0 for a run that was stopped: only the time of a batch of which all items were
    prepared says what its size costs. ``started``: when the batch was taken, of ``time.monotonic``.
    """
    cancellation = RunCancellation(lambda: all(item.abandoned for item in items))
    for item in items:
        item.cancellation = cancellation
    try:
        prepared = _run_all(work, items, started, cancellation)
    finally:
        for item in items:  # the two refer to each other: images would stay in memory until a garbage collection
            item.cancellation = None
    return 0 if cancellation.abandoned else prepared


def _run_all(
    work: BatchSteps[P, Q, R], items: Sequence[Item[P, R]], started: float, cancellation: RunCancellation
) -> int:
    groups: dict[Hashable, list[tuple[Item[P, R], Q]]] = {}
    for item in items:
        if item.left:
            refuse_dead(item)
            continue
        begin = time.perf_counter()
        try:
            if item.prepared is not None:
                key, prepared = item.prepared
            else:
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
                refuse_dead(item)
        elif len(group) == 1 or isinstance(error, ModelDisabled):
            for item, _ in group:
                _answer(item, None, None, error)
        else:  # run each alone: only the item that causes the error fails
            for member in group:
                _run_group(work, [member], started, cancellation)
        return
    inference_ms = (time.perf_counter() - begin) * 1e3
    for (item, prepared), output in zip(group, outputs, strict=True):
        begin = time.perf_counter()
        result: R | RawOutput
        try:
            if item.prepared is not None:
                result = RawOutput(output, prepared)
            else:
                result = work.finish(output, prepared, item.payload)
        except BaseException as error:
            _answer(item, None, None, error)
            continue
        finish_ms = (time.perf_counter() - begin) * 1e3
        waited_ms = item.waited_ms + (started - item.submitted) * 1e3
        timing = Timing(waited_ms, inference_ms, len(group), item.prepare_ms, finish_ms)
        _answer(item, result, timing, None)


def _answer(item: Item[P, R], result: R | RawOutput | None, timing: Timing | None, error: BaseException | None) -> None:
    try:
        item.answer(result, timing, error)
    except Exception:  # the caller's code; the rest of the batch goes on
        log.exception("an answer was not taken")


def refuse_dead(item: Item[Any, Any]) -> None:
    """End an item that is not run: CallerLeft where its caller has left, else DeadlineExceeded."""
    error: Refusal
    if item.left:
        error = CallerLeft("the caller left before its turn")
    else:
        error = DeadlineExceeded("the request waited longer than its deadline", retry_after_s=1)
    refuse(item, error)


def refuse(item: Item[Any, Any], error: Refusal) -> None:
    """End an item that is not run, with ``error``."""
    _answer(item, None, None, error)
