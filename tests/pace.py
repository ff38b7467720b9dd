"""How slow this machine is now: bounds on the time that processes take are multiples of it."""

from __future__ import annotations

import functools
import subprocess
import sys
import time

_USUAL_S = 1.5
"""Seconds that the imports below take on two quiet cores of 2023."""


def seconds_to_import(*modules: str) -> float:
    """Seconds that a new interpreter takes to import ``modules`` and to end."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", f"import {', '.join(modules)}"], check=True)
    return time.monotonic() - began


@functools.cache
def pace() -> float:
    """1 on a machine that starts Python as fast as most, 3 on one that takes three times as long. Measured once."""
    return max(1.0, seconds_to_import("bentoml", "onnxruntime", "sqlmodel", "fastapi", "grpc") / _USUAL_S)
