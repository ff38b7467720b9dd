"""BentoML's supervising process: what ends is started again soon, and what ends again and again ever more seldom."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import circus.arbiter
import pytest
from bentoml._internal.utils import circus as bento_circus
from bentoml.serving import create_watcher
from circus.process import DEAD_OR_ZOMBIE, RUNNING

from services.bento.process_supervision import LOOK_S, SupervisingArbiter, supervise_closely
from services.concurrency.restart_delay import DELAYS_S, RestartDelay


class Process:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.status = RUNNING

    def age(self) -> float:
        return 1.0


class Watcher(SimpleNamespace):
    numprocesses = 1


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []
    monkeypatch.setattr(circus.arbiter.Arbiter, "manage_watchers", lambda self: made.append(1.0))
    return made


def arbiter(clock: Any, *watchers: Watcher) -> Any:
    made: Any = SupervisingArbiter.__new__(SupervisingArbiter)
    made.watchers = list(watchers)
    made._exclusive_running_command, made._stopping = None, False
    made.iter_watchers = lambda: made.watchers
    made.delay = RestartDelay(clock)
    return made


def test_a_crash_loop_waits_longer_each_time_and_says_so(looks: list[float], caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    watcher = Watcher(processes={})
    supervising = arbiter(lambda: now[0], watcher)
    caplog.set_level(logging.WARNING)
    for count, wait_s in enumerate((*DELAYS_S, DELAYS_S[-1]), start=1):
        process = Process(count)
        watcher.processes = {count: process}
        supervising.manage_watchers()
        assert len(looks) == count - 1  # it runs: nothing to do
        process.status = DEAD_OR_ZOMBIE
        waited = 0.0
        while len(looks) < count:
            supervising.manage_watchers()
            now[0] += LOOK_S
            waited += LOOK_S
        assert wait_s <= waited <= wait_s + 2 * LOOK_S
    said = [record for record in caplog.records if "ended" in record.getMessage()]
    assert [record.in_s for record in said] == [*DELAYS_S, DELAYS_S[-1]]  # type: ignore[attr-defined]


def test_a_missing_process_is_started_and_a_busy_arbiter_is_left_alone(looks: list[float]) -> None:
    supervising = arbiter(lambda: 0.0, Watcher(processes={}))
    supervising._exclusive_running_command = "arbiter_start_watchers"
    supervising.manage_watchers()
    assert looks == []  # circus would refuse it with an exception, and log a traceback
    supervising._exclusive_running_command = None
    supervising.manage_watchers()
    assert len(looks) == 1


def test_bentoml_makes_its_arbiter_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ekiben relies on in BentoML and circus: an update that changes it fails here."""
    monkeypatch.setattr(bento_circus, "Arbiter", bento_circus.Arbiter)
    supervise_closely()
    made = bento_circus.create_standalone_arbiter([create_watcher("idle", ["-c", ""])])
    try:
        assert isinstance(made, SupervisingArbiter)
        assert made.check_delay == made.ctrl.check_delay / 1000 == LOOK_S
        assert made._stopping is False
        assert [len(watcher.processes) for watcher in made.iter_watchers()] == [0]
    finally:
        made.ctrl.sys_hdl.stop()
