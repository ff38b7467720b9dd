"""Processes that end with the process that started them, also where that one was killed. Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

SUPERVISOR_PID = "_EKIBEN_SUPERVISOR_PID"
"""Environment variable: the process that has to be the parent of one that calls ``terminate_with_supervisor``."""

_PR_SET_PDEATHSIG = 1


def terminate_with_parent() -> None:
    """Have the kernel send this process SIGTERM when the thread that started it ends."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def terminate_with_supervisor() -> None:
    """``terminate_with_parent``; SystemExit where the process that SUPERVISOR_PID names has ended before that."""
    terminate_with_parent()
    if (pid := os.environ.get(SUPERVISOR_PID)) and sys.platform == "linux" and os.getppid() != int(pid):
        raise SystemExit("the process that supervises this one has ended")
