"""When a worker polls the queue, and when it only looks for an open job."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from db.changes import DatabaseChanges
from db.jobs import JobRecords
from db.migrate import migrate
from db.session import connect
from db.tables import Job
from ekiben.errors import Unavailable
from services.jobs import dbos_queue, queue_standby
from services.jobs.dbos_queue import JobQueue
from services.jobs.queue_standby import IDLE_S, LOOK_S, OPEN_LOOK_S, QueueStandby
from tests.db.job_rows import change, items, job
from tests.waiting import eventually


class Scene:
    """A standby with a consumer, a database and a clock that the test sets."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.open = False
        self.changed = True
        self.done: list[str] = []
        self.queries = 0
        self.away = False
        self.broken = False
        self.standby = QueueStandby(self, self.any_open, self.look, lambda: self.now)

    def start(self) -> None:
        if self.broken:
            raise Unavailable("the database is unreachable")
        self.done.append("start")

    def stop(self, patience_s: float) -> None:
        self.done.append("stop")

    def any_open(self) -> bool:
        self.queries += 1
        if self.away:
            raise Unavailable("the database is unreachable")
        return self.open

    def look(self) -> bool:
        changed, self.changed = self.changed, False
        return changed

    def submit(self) -> None:
        self.open = self.changed = True


def test_a_worker_without_a_job_begins_on_standby_and_asks_only_after_a_change() -> None:
    scene = Scene()
    assert [scene.standby.look() for _ in range(100)] == [LOOK_S] * 100
    assert (scene.done, scene.queries) == ([], 1)
    scene.changed = True  # somebody's heartbeat
    scene.standby.look()
    scene.standby.look()
    assert (scene.done, scene.queries) == ([], 2)


def test_the_first_look_after_a_submission_begins() -> None:
    scene = Scene()
    scene.standby.look()
    scene.submit()
    assert scene.standby.look() == OPEN_LOOK_S
    assert scene.done == ["start"]
    assert scene.standby.consuming


def test_polling_ends_a_minute_after_the_last_job_ended() -> None:
    scene = Scene()
    scene.submit()
    scene.standby.look()
    scene.now += 10 * IDLE_S  # a long training: it is open all the time
    scene.standby.look()
    scene.open = False
    scene.now += IDLE_S - 1
    assert scene.standby.look() == OPEN_LOOK_S
    scene.open = True  # another one within the minute
    scene.standby.look()
    scene.open = False
    scene.now += IDLE_S - 1
    scene.standby.look()
    assert scene.done == ["start"]
    scene.now += 1
    assert scene.standby.look() == LOOK_S
    assert scene.done == ["start", "stop"]
    assert not scene.standby.consuming


def test_a_job_that_came_while_polling_ended_is_found_though_its_commit_was_seen() -> None:
    scene = Scene()
    scene.submit()
    scene.standby.look()
    scene.open, scene.changed = False, False
    scene.now += IDLE_S
    scene.standby.look()
    scene.open = True  # ``changed`` says no: another look had taken it
    scene.standby.look()
    assert scene.done == ["start", "stop", "start"]


def test_a_job_is_not_missed_because_a_look_or_a_start_failed() -> None:
    scene = Scene()
    scene.standby.look()
    scene.submit()
    scene.away = True
    for _ in range(2):
        with pytest.raises(Unavailable):
            scene.standby.look()
    scene.away, scene.broken = False, True
    with pytest.raises(Unavailable):
        scene.standby.look()
    assert not scene.standby.consuming
    scene.broken = False
    scene.standby.look()
    assert scene.done == ["start"]


def test_the_end() -> None:
    scene = Scene()
    scene.standby.stop(2)  # it was never started
    scene = Scene()
    scene.standby.start()
    scene.standby.stop(2)
    assert scene.done == []
    scene = Scene()
    scene.submit()
    scene.standby.start()
    scene.standby.stop(2)
    assert scene.done == ["start", "stop"]


def test_the_thread_looks_again_after_failures(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(queue_standby, "LOOK_S", 0.001)
    scene = Scene()
    scene.standby.start()
    scene.away = True
    scene.submit()
    asked = scene.queries
    eventually(lambda: scene.queries > asked + 5)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "the queue is not looked at: the database is unreachable"
    ]
    scene.away = False
    eventually(lambda: scene.done)
    scene.standby.stop(0)
    assert scene.done == ["start", "stop"]


@pytest.mark.parametrize("kind", ["request", "batch", "import", "training"])
def test_which_jobs_are_open(tmp_path: Path, kind: str) -> None:
    url = f"sqlite:///{tmp_path / 'ekiben.db'}"
    migrate(url)
    engine = connect(url)
    records = JobRecords(engine)
    assert not records.any_open()
    stored, _ = records.submit(job(kind=kind), items(1), 0, lambda *given: None)
    for state, is_open in (("queued", True), ("running", True), ("succeeded", False), ("failed", False)):
        change(engine, Job, stored.id, state=state)
        assert records.any_open() is is_open
        assert records.any_open({"training"}) is (is_open and kind != "training")


WORKER = """
import sys, threading
from pathlib import Path
from db.jobs import JobRecords
from db.changes import DatabaseChanges
from db.session import connect
from services.jobs import queue_standby
from services.jobs.dbos_queue import QueueConsumer
from services.jobs.queue_standby import QueueStandby
queue_standby.OPEN_LOOK_S, queue_standby.IDLE_S = 0.05, 0.5
url = sys.argv[1]
engine = connect(url)
records = JobRecords(engine)
def work(job_id):
    records.fail(job_id, {"code": "x", "message": "x"})
    print("worked", job_id, flush=True)
consumer = QueueConsumer(url, "worker-1", work, {"request": 1, "batch": 1})
standby = QueueStandby(consumer, records.any_open, DatabaseChanges(engine).look)
standby.start()
print("dbos" in sys.modules, flush=True)
for line in sys.stdin:  # each asks for the next end of polling
    while standby.consuming:
        threading.Event().wait(0.01)
    print("standby", threading.active_count(), flush=True)
standby.stop(0)
"""


@pytest.mark.timeout(120)
def test_a_real_queue_is_taken_from_again_and_again(tmp_path: Path) -> None:
    """Standby, job, standby, four times in one process, whose consumer leaves no thread behind."""
    url = f"sqlite:///{tmp_path / 'ekiben.db'}"
    migrate(url)
    queue, engine = JobQueue(url), connect(url)
    records = JobRecords(engine)
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, url],
        cwd=Path(dbos_queue.__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said: Callable[[], str] = process.stdout.readline
        try:
            assert said() == "False\n"  # 15 MB that a worker without a job does not have
            threads = set()
            for kind in ("request", "batch", "request", "batch"):
                queue.open()
                stored, _ = records.submit(job(kind=kind), items(1), 1, queue.enqueue)
                assert said() == f"worked {stored.id}\n"
                process.stdin.write("\n")
                process.stdin.flush()
                word, count = said().split()
                assert word == "standby"
                threads.add(count)
            assert len(threads) == 1, threads
            process.stdin.close()
            assert process.wait(30) == 0
        finally:
            process.kill()
    queue.close()
    engine.dispose()


def test_looking_costs_no_query_while_nobody_writes(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ekiben.db'}"
    migrate(url)
    engine = connect(url)
    records, scene, asked = JobRecords(engine), Scene(), []

    def any_open() -> bool:
        asked.append(1)
        return records.any_open()

    standby = QueueStandby(scene, any_open, DatabaseChanges(engine).look)
    for _ in range(50):
        standby.look()
    assert len(asked) == 1
    records.submit(job(), items(1), 0, lambda *given: None)
    standby.look()
    assert (len(asked), scene.done) == (2, ["start"])
