"""The watch of runs: what takes too long is stopped, what was kept from running is not."""

from __future__ import annotations

import threading
import time

from models.engine.run_watch import RunWatch, WatchedRun
from tests.waiting import eventually


def _compute(until: threading.Event) -> None:
    end = time.monotonic() + 30
    while not until.is_set() and time.monotonic() < end:
        pass


def test_a_run_over_its_limit_is_overdue_and_then_stopped_once() -> None:
    told: list[str] = []
    stopped = threading.Event()

    def stop(_: WatchedRun) -> None:
        told.append("stopped")
        stopped.set()

    me = threading.get_ident()
    watch = RunWatch(lambda thread: told.append("overdue" if thread == me else "another"), look_s=0.01)
    with watch.watching(0.2, 0.05, stop) as run:
        _compute(stopped)
        assert run.exceeded and run.stopped and watch.under_way == 1
        time.sleep(0.05)
    assert told == ["overdue", "stopped"] and watch.under_way == 0


def test_a_run_that_gets_no_processor_is_not_stopped() -> None:
    """Overdue it is: other models need not wait for it. But its graph may be quick, on a machine that is busy."""
    overdue = threading.Event()
    watch = RunWatch(lambda _: overdue.set(), look_s=0.01)
    with watch.watching(0.1, 0.05, lambda _: None) as run:
        assert overdue.wait(30)
        eventually(lambda: run.spent_s > 0.3)
        assert not run.exceeded
    with watch.watching(0.01, 0.01, lambda _: None) as run:  # but not for ever
        eventually(lambda: run.exceeded)


def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    class Slept(RunWatch):
        """As after SIGSTOP, a look comes an hour late."""

    watch = Slept(look_s=0.01)
    real, late = time.monotonic, [0.0]
    with watch.watching(60, 60, lambda _: None) as run:
        eventually(lambda: run.spent_s > 0)
        try:
            time.monotonic = lambda: real() + late[0]  # type: ignore[assignment]
            late[0] = 3600
            before = run.spent_s
            end = real() + 30
            while run.spent_s == before and real() < end:
                time.sleep(0.001)
        finally:
            time.monotonic = real  # type: ignore[assignment]
        assert 0 < run.spent_s < 30 and not run.exceeded


def test_after_close_every_run_is_stopped() -> None:
    watch = RunWatch(look_s=0.01)
    stops: list[str] = []
    with watch.watching(60, 60, lambda _: stops.append("under way")) as run:
        watch.close()
        assert stops == ["under way"] and run.stopped and not run.exceeded
    with watch.watching(60, 60, lambda _: stops.append("later")):
        pass
    assert stops == ["under way", "later"]


def test_runs_on_many_threads() -> None:
    watch = RunWatch(look_s=0.001)

    def work() -> None:
        for _ in range(200):
            with watch.watching(60, 60, lambda _: None) as run:
                assert isinstance(run, WatchedRun)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and watch.under_way == 0
