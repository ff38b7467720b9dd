"""Which threads give way: on Linux each has a niceness of its own, and these tests read it where the system says it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from services.worker import DATABASE_THREADS
from tests import toy_models
from tests.services.jobs.job_homes import AtWork, at_work, make_home
from tests.serving import ROOT, environ

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="niceness belongs to the process here")

OWN = os.nice(0)
NICE = min(OWN + 7, 19)

# In a process of its own: a thread that has become nice cannot take it back.
STEADY = """
import json, os, threading
from concurrent.futures import ThreadPoolExecutor
from services.concurrency.thread_priority import be_nice, steady_threads

def niceness():
    return threading.get_native_id(), int(open(f"/proc/self/task/{threading.get_native_id()}/stat").read().split()[18])

def both(threads):
    there = threading.Barrier(3)
    return list(threads.map(lambda n: (there.wait(), niceness())[1], range(3)))

steady = steady_threads(3)
started = threading.active_count() - 1
be_nice(0)
found = {"before": niceness(), "nice": [], "child": []}
def elsewhere():
    be_nice(int(os.environ["NICE"]))
    found["nice"].append(niceness())
    child = threading.Thread(target=lambda: found["child"].append(niceness()))
    child.start()
    child.join()
thread = threading.Thread(target=elsewhere)
thread.start()
thread.join()
found["main"] = niceness()
be_nice(int(os.environ["NICE"]))
found["main then"] = niceness()
found["steady"] = both(steady)
found["others"] = both(ThreadPoolExecutor(3))
print(json.dumps({"started": started, **found}))
"""


def test_steady_threads_stay_as_they_are() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEADY],
        cwd=ROOT,
        env={**os.environ, "NICE": str(NICE)},
        stdout=subprocess.PIPE,
        timeout=60,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found["started"] == 3  # all of them, before anything was asked of them
    assert found["before"][1] == found["main"][1] == OWN  # what another thread does is its own affair
    assert [nice for _, nice in [*found["nice"], *found["child"]]] == [NICE] * 2
    assert found["main then"][1] == NICE
    assert [nice for _, nice in found["steady"]] == [OWN] * 3
    assert len({ident for ident, _ in found["steady"]}) == 3
    assert [nice for _, nice in found["others"]] == [NICE] * 3


# The worker as it is; beside it a thread that says, for each line that it reads, how Python calls the threads.
WORKER = """
import json, sys, threading
from services import worker

def tell():
    for _ in sys.stdin:
        print(json.dumps({thread.native_id: thread.name for thread in threading.enumerate()}), flush=True)

threading.Thread(target=tell, name="tell", daemon=True).start()
sys.exit(worker.main())
"""


def niceness(pid: int) -> dict[int, int]:
    """By the ids of a process's threads."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        # The name of a command, in brackets, may have blanks in it.
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        found[int(task.name)] = int(fields[19 - 3])
    return found


@pytest.mark.acceptance
def test_what_computes_in_a_worker_gives_way_and_the_rest_does_not(tmp_path: Path) -> None:
    template = make_home(tmp_path / "template")
    log = tmp_path / "worker.log"
    images = [toy_models.encoded(toy_models.noise(200, 150, seed=n)) for n in range(12)]

    async def main(bench: AtWork, worker: subprocess.Popen[str]) -> dict[str, set[int]]:
        job = await bench.submit("classify", images, {"model": "colours"})
        while bench.job(job.id).state != "succeeded":
            assert worker.poll() is None, log.read_text()
            await asyncio.sleep(0.05)
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
        names = {int(ident): name for ident, name in json.loads(worker.stdout.readline()).items()}
        found = defaultdict(set)
        for ident, nice in niceness(worker.pid).items():
            found["main" if ident == worker.pid else names.get(ident, "native")].add(nice)
        return found

    async def whole() -> dict[str, set[int]]:
        async with at_work(template, tmp_path) as bench:
            with log.open("wb") as out:
                worker = subprocess.Popen(
                    [sys.executable, "-c", WORKER],
                    cwd=ROOT,
                    env=environ(bench.app_state.settings.home, EKIBEN_WORKER_NICE=str(NICE), EKIBEN_THREADS="2"),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=out,
                    text=True,
                )
            try:
                return await asyncio.wait_for(main(bench, worker), 60)
            finally:
                worker.terminate()
                worker.communicate(timeout=30)

    found = asyncio.run(whole())
    steady = [f"steady_{number}" for number in range(DATABASE_THREADS)]
    assert {name: found[name] for name in ("records-writer", "heartbeat", "maintenance", *steady)} == {
        name: {OWN} for name in ("records-writer", "heartbeat", "maintenance", *steady)
    }
    assert found["main"] == {NICE}  # the event loop, and the one that it starts
    # The networks; who loads one has ended.
    assert [nice for name, nice in found.items() if name.startswith("batcher")], sorted(found)
    assert all(nice == {NICE} for name, nice in found.items() if name.startswith("batcher")), found
