"""Children: what they say, how they end, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ekiben.errors import StorageFull
from services.jobs import child_process
from services.jobs.child_process import ChildFailed, run_child
from tests.waiting import eventually

SPEAK = "import json, os, sys, time\ndef say(**said): print(json.dumps(said), flush=True)\n"


def command(code: str) -> list[str]:
    return [sys.executable, "-c", SPEAK + code]


async def heard(code: str, folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    said: list[dict[str, Any]] = []

    async def listen(message: dict[str, Any]) -> None:
        said.append(message)

    return await run_child(command(code), listen, folder=folder), said


def test_what_it_says_comes_in_order(tmp_path: Path) -> None:
    code = "[say(event='step', data={'n': n}) for n in range(500)]; say(result={'pid': os.getcwd()})"
    result, said = asyncio.run(heard(code, tmp_path))
    assert result == {"pid": str(tmp_path.resolve())}
    assert [message["data"]["n"] for message in said] == list(range(500))


def test_a_refusal_is_its_own_words(tmp_path: Path) -> None:
    code = "say(refusal={'code': 'diverged', 'message': 'the loss is not finite'}); sys.exit(2)"
    with pytest.raises(ChildFailed, match=r"^the loss is not finite$") as failed:
        asyncio.run(heard(code, tmp_path))
    assert failed.value.code == "diverged"


@pytest.mark.parametrize(
    ("code", "expected", "words"),
    [
        ("os.kill(os.getpid(), 9)", "out_of_memory", "needed more memory"),
        ("sys.stderr.write('bad address\\n'); sys.stderr.flush(); os.kill(os.getpid(), 11)", "crashed", "SIGSEGV"),
        ("raise ValueError('secret path')", "internal_error", "internal error"),
        ("pass", "internal_error", "internal error"),
        ("say(result={}); sys.exit(1)", "internal_error", "internal error"),
    ],
)
def test_how_it_died(code: str, expected: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ChildFailed, match=words) as failed:
        asyncio.run(heard(code, tmp_path))
    assert failed.value.code == expected
    assert "secret" not in failed.value.message


def test_what_is_no_message_is_passed_over(tmp_path: Path) -> None:
    _, said = asyncio.run(heard("print('[1]'); print('hm'); say(event='e', data={}); say(result={})", tmp_path))
    assert said == [{"event": "e", "data": {}}]


def test_a_long_line_of_its_log_is_no_obstacle(tmp_path: Path) -> None:
    code = "sys.stderr.write('x' * 20_000_000 + '\\n'); sys.stderr.flush(); say(result={'ok': True})"
    result, _ = asyncio.run(heard(code, tmp_path))
    assert result == {"ok": True}


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


@pytest.mark.parametrize("stubborn", [False, True])
def test_cancelled_it_takes_all_it_started_along(stubborn: bool, tmp_path: Path) -> None:
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" if stubborn else ""
    code = (
        ignore + "import subprocess\nother = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "say(event='pids', data={'pids': [os.getpid(), other.pid]}); time.sleep(60)"
    )

    async def cancelled() -> tuple[list[int], float]:
        pids: list[int] = []
        told = asyncio.Event()

        async def listen(message: dict[str, Any]) -> None:
            pids.extend(message["data"]["pids"])
            told.set()

        task = asyncio.create_task(run_child(command(code), listen, folder=tmp_path))
        await asyncio.wait_for(told.wait(), 20)
        begun = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pids, time.monotonic() - begun

    pids, seconds = asyncio.run(cancelled())
    assert seconds < 30
    eventually(lambda: not any(alive(pid) for pid in pids), limit_s=20)


def test_it_is_the_first_to_go_when_memory_runs_out(tmp_path: Path) -> None:
    code = (
        "score = lambda: open('/proc/self/oom_score_adj').read().strip()\n"
        "end = time.monotonic() + 20\n"
        "while score() != '1000' and time.monotonic() < end: time.sleep(0.01)\n"
        "say(result={'score': score()})"
    )
    result, _ = asyncio.run(heard(code, tmp_path))
    assert result == {"score": "1000"}


def test_a_listener_that_fails_ends_it(tmp_path: Path) -> None:
    async def listen(message: dict[str, Any]) -> None:
        pid.append(message["data"]["pid"])
        raise RuntimeError("no database")

    pid: list[int] = []
    code = "say(event='e', data={'pid': os.getpid()}); time.sleep(60)"
    with pytest.raises(RuntimeError, match="no database"):
        asyncio.run(run_child(command(code), listen, folder=tmp_path))
    assert not alive(pid[0])


def test_a_child_without_space_is_to_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "say(refusal={'code': 'storage_full', 'message': 'no space is left'}); sys.exit(2)"
    with pytest.raises(StorageFull, match="no space is left"):
        asyncio.run(heard(code, tmp_path))
    monkeypatch.setattr(child_process, "is_without_space", lambda folder: folder == tmp_path)
    for code in ("raise RuntimeError('PytorchStreamWriter failed writing file')", "os.kill(os.getpid(), 7)"):
        with pytest.raises(StorageFull):
            asyncio.run(heard(code, tmp_path))
