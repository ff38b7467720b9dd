"""Child processes: programs that a worker starts for work that is long, or that may crash or exhaust its process.

The messages that a child writes are those of ekiben/child_protocol.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from ekiben.disk_full import NO_SPACE, is_without_space
from ekiben.errors import Refusal, StorageFull
from services.concurrency.shielded import shielded

log = logging.getLogger(__name__)

Message = dict[str, Any]

PATIENCE_S = 1.0
"""Seconds between SIGTERM and SIGKILL."""

_LINE = 16_000_000  # bytes of one message
_LAST_LINES = 30  # of the log, kept for the error
_FIRST_VICTIM = b"1000"  # the highest oom_score_adj (man 5 proc)


class ChildFailed(Refusal):
    """A child ended without a result. Code and message are those of its refusal, or say how it died."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message, code=code)


async def run_child(
    command: Sequence[str],
    on_message: Callable[[Message], Awaitable[None]],
    *,
    folder: Path,
    environ: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The result of a child that works in ``folder``; ``on_message`` is called with each message before it, in order.

    ChildFailed; StorageFull where the disk had no space for it. When this is cancelled, or ``on_message`` raises, the
    child is ended with all that it started.
    """
    child = await start_process(
        *command,
        cwd=folder,
        env=environ,
        stdin=asyncio.subprocess.PIPE,  # never written to: it closes when this process ends, however that happens
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        limit=_LINE,
    )
    _kill_first_on_low_memory(child.pid)
    last: deque[str] = deque(maxlen=_LAST_LINES)
    listening = asyncio.create_task(_listen(child, last))
    refusal: dict[str, str] | None = None
    result: dict[str, Any] | None = None
    try:
        if child.stdout is None:
            raise RuntimeError("a child without a pipe")
        while line := await child.stdout.readline():
            message = _message(line)
            if "result" in message:
                result = message["result"]
            elif "refusal" in message:
                refusal = message["refusal"]
            elif message:
                await on_message(message)
        status = await child.wait()
    except BaseException:
        await shielded(_end(child))
        raise
    finally:
        listening.cancel()
    if status == 0 and result is not None:
        return result
    if refusal is not None and refusal.get("code") == StorageFull.code:
        raise StorageFull(str(refusal.get("message", NO_SPACE)))
    if refusal is not None:
        raise ChildFailed(str(refusal.get("code", "failed")), str(refusal.get("message", "it failed")))
    died = _died(status, list(last))
    if is_without_space(folder):  # what it could not write may have ended it in any way: SIGBUS, an error without errno
        raise StorageFull(NO_SPACE)
    raise died


async def start_process(*command: str, **options: Any) -> asyncio.subprocess.Process:
    """Start a process in a process group of its own. Cancelled meanwhile, the group is killed.

    ``options``: of ``asyncio.create_subprocess_exec``.
    """
    starting = asyncio.ensure_future(asyncio.create_subprocess_exec(*command, **options, start_new_session=True))
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        process = await starting
        _signal(process.pid, signal.SIGKILL)
        await process.wait()
        raise


def _message(line: bytes) -> Message:
    try:
        message = orjson.loads(line)
    except orjson.JSONDecodeError:
        message = None
    if not isinstance(message, dict):
        log.warning("a child wrote a line that is no message", extra={"line": line[:200].decode(errors="replace")})
        return {}
    return message


async def _listen(child: asyncio.subprocess.Process, last: deque[str]) -> None:
    """Copy what it logs into this process's log, and the last lines into ``last``: they say why it died."""
    if child.stderr is None:
        return
    while True:
        try:
            line = await child.stderr.readline()
        except ValueError:  # longer than the limit of the stream
            continue
        if not line:
            return
        text = line.decode(errors="replace").rstrip()
        if text:
            last.append(text)
            log.debug("child: %s", text, extra={"child": child.pid})


def _died(status: int, last: list[str]) -> ChildFailed:
    tail = last[-1] if last else "it said nothing"
    log.error("a child ended without a result", extra={"status": status, "said": last})
    if status == -signal.SIGKILL:
        return ChildFailed(
            "out_of_memory", "it was killed by the system: most likely it needed more memory than there is"
        )
    if status < 0:
        return ChildFailed(
            "crashed", f"its process crashed ({signal.Signals(-status).name}); the last that it said: {tail[:300]}"
        )
    return ChildFailed("internal_error", "it ended with an internal error; the log has it under this job's id")


async def _end(child: asyncio.subprocess.Process) -> None:
    """End it and its group: SIGTERM, then SIGKILL after PATIENCE_S."""
    if child.returncode is not None:
        return
    _signal(child.pid, signal.SIGTERM)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(child.wait(), PATIENCE_S)
    _signal(child.pid, signal.SIGKILL)  # it, or processes that it left behind
    await child.wait()


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _kill_first_on_low_memory(pid: int) -> None:
    """Have the kernel kill this process first when memory runs out, before those that serve requests."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_bytes(_FIRST_VICTIM)
