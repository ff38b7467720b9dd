"""The supervisor: workers that end are started again, by one process of a home, and end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.concurrency import restart_delay
from services.processes import worker_supervisor
from services.processes.worker_supervisor import WorkerSupervisor
from tests.waiting import eventually

SLEEPS = "import sys; sys.stdin.read()"
FAILS = "raise SystemExit(3)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"


class Started:
    """The processes that supervisors started, running ``script`` in a worker's place."""

    def __init__(self, script: str) -> None:
        self.script = script
        self.processes: list[subprocess.Popen[bytes]] = []
        self.commands: list[list[str]] = []
        self.refuse = 0

    def __call__(self, command: list[str], **given: Any) -> subprocess.Popen[bytes]:
        self.commands.append(command)
        if self.refuse > 0:
            self.refuse -= 1
            raise BlockingIOError("no more processes for now")
        process = subprocess.Popen([sys.executable, "-S", "-c", self.script], stdout=subprocess.PIPE, **given)
        self.processes.append(process)
        return process

    def alive(self) -> list[subprocess.Popen[bytes]]:
        return [process for process in self.processes if process.poll() is None]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    made = Started(SLEEPS)
    stand_in = SimpleNamespace(Popen=made, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(worker_supervisor, "subprocess", stand_in)
    monkeypatch.setattr(worker_supervisor, "LOOK_S", 0.02)
    monkeypatch.setattr(restart_delay, "DELAYS_S", (0.05, 0.1, 0.2, 0.4, 0.8))
    yield made
    for process in made.alive():
        process.kill()
    for process in made.processes:
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def running(home: Path, count: int = 1, ended: Callable[[str], object] = lambda id: None) -> WorkerSupervisor:
    made = WorkerSupervisor(home, count, ended)
    made.start()
    return made


def test_so_many_workers_run_until_the_stop(started: Started, tmp_path: Path) -> None:
    watch = running(tmp_path / "new" / "home", 3)
    eventually(lambda: len(started.alive()) == 3)
    watch.look()
    assert len(started.processes) == 3
    for command in started.commands:
        assert command[:4] == [sys.executable, "-m", "services.worker", "--with-parent"]
    assert len({tuple(command) for command in started.commands}) == 3  # each has an id of its own
    watch.stop()
    assert started.alive() == []
    assert [process.returncode for process in started.processes] == [-signal.SIGTERM] * 3


def test_a_killed_worker_is_replaced(started: Started, tmp_path: Path) -> None:
    ended: list[str] = []
    watch = running(tmp_path, 2, ended.append)
    eventually(lambda: len(started.alive()) == 2)
    started.processes[0].kill()
    eventually(lambda: len(started.processes) == 3 and len(started.alive()) == 2)
    ids = [command[-1] for command in started.commands]
    assert ended == [ids[0]]
    assert len(set(ids)) == 3
    watch.stop()


def test_one_that_fails_is_started_ever_more_seldom(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restart_delay, "DELAYS_S", (0.5, 1, 2))
    started.script, clock = FAILS, Clock()
    supervisor = WorkerSupervisor(tmp_path, 1, lambda id: None, clock=clock)
    supervisor.look()
    for count, wait_s in enumerate((0.5, 1, 2, 2), start=1):
        assert started.processes[-1].wait(60) == 3
        supervisor.look()  # it sees the end, and waits from now on
        clock.now += wait_s - 0.1
        supervisor.look()
        assert len(started.processes) == count
        clock.now += 0.1
        supervisor.look()
        assert len(started.processes) == count + 1


def test_the_failures_of_one_that_was_steady_are_forgotten(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restart_delay, "DELAYS_S", (0.5, 1000))
    monkeypatch.setattr(restart_delay, "STEADY_S", 30)
    clock = Clock()
    supervisor = WorkerSupervisor(tmp_path, 1, lambda id: None, clock=clock)
    supervisor.look()
    for count in (1, 2, 3):  # a second failure in a row would wait a thousand seconds
        clock.now += 30.5
        started.processes[-1].kill()
        started.processes[-1].wait(60)
        supervisor.look()
        assert len(started.processes) == count
        clock.now += 0.5
        supervisor.look()
        assert len(started.processes) == count + 1


def test_a_system_that_has_no_process_to_spare_is_asked_again(started: Started, tmp_path: Path) -> None:
    started.refuse = 1
    watch = running(tmp_path)
    try:
        eventually(lambda: started.alive())
    finally:
        watch.stop()


def test_one_whose_end_cannot_be_told_is_replaced(started: Started, tmp_path: Path) -> None:
    def ended(id: str) -> None:
        raise RuntimeError("the database is not what it was")

    watch = running(tmp_path, 1, ended)
    try:
        eventually(lambda: started.alive())
        started.processes[0].kill()
        eventually(lambda: len(started.processes) == 2)
    finally:
        watch.stop()


def test_one_supervisor_of_a_home_and_the_next_when_it_ends(started: Started, tmp_path: Path) -> None:
    first = running(tmp_path)
    eventually(lambda: len(started.alive()) == 1)
    second, elsewhere = running(tmp_path), running(tmp_path / "other")
    eventually(lambda: len(started.alive()) == 2)
    second.look()
    assert len(started.processes) == 2  # one for each home
    first.stop()
    assert started.processes[0].poll() is not None
    eventually(lambda: len(started.processes) == 3)  # it looks every two seconds
    second.stop()
    elsewhere.stop()
    assert started.alive() == []


def test_a_worker_that_does_not_end_is_killed(
    started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_supervisor, "STOP_S", 0.3)
    started.script = DEAF
    watch = running(tmp_path)
    eventually(lambda: started.alive())
    out = started.processes[0].stdout
    assert out is not None and out.readline() == b"\n"  # it is deaf now
    watch.stop()
    assert started.processes[0].returncode == -signal.SIGKILL


def test_a_stop_can_be_asked_for_without_waiting(started: Started, tmp_path: Path) -> None:
    watch = running(tmp_path)
    eventually(lambda: started.alive())
    watch.ask_to_stop()
    eventually(lambda: not started.alive())
    watch.stop()
    assert len(started.processes) == 1


def test_workers_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    """The pipe to a worker closes with the process that holds it, however that ends."""
    script = f"""
import subprocess, sys, time
from pathlib import Path
from types import SimpleNamespace
from services.concurrency import restart_delay
from services.processes import worker_supervisor
def start(command, **given):
    process = subprocess.Popen([sys.executable, "-S", "-c", {SLEEPS!r}], **given)
    print(process.pid, flush=True)
    return process
given = dict(PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
worker_supervisor.subprocess = SimpleNamespace(Popen=start, **given)
worker_supervisor.WorkerSupervisor(Path({str(tmp_path)!r}), 2, print).start()
time.sleep(600)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(worker_supervisor.__file__).parents[2]
    )
    assert parent.stdout is not None
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    try:
        assert all(_lives(pid) for pid in pids)
        parent.kill()
        parent.wait()
        eventually(lambda: not any(_lives(pid) for pid in pids))
    finally:
        parent.stdout.close()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
