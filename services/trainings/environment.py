"""The Python that trains: serving has no torch, so its environment is made when it is first needed."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
from pathlib import Path

from ekiben.errors import Refusal
from services.jobs.child_process import start_process

_ROOT = Path(__file__).parents[2]
_BESIDE = ".venv-torch"
_MAKE_S = 3600.0  # seconds for the environment, which downloads torch


class TorchMissing(Refusal):
    """There is no Python with torch to train with."""

    code = "training_unavailable"


async def training_python(setting: str) -> str:
    """The interpreter that ``EKIBEN_TRAINING_PYTHON`` names; else this one, or that of .venv-torch.

    In a checkout with its Makefile the environment is made, which takes minutes. TorchMissing says how to get one.
    """
    if setting:
        if not await asyncio.to_thread(Path(setting).is_file):
            raise TorchMissing(f"EKIBEN_TRAINING_PYTHON is {setting}, and there is no such file")
        return setting
    if importlib.util.find_spec("torch") and importlib.util.find_spec("monai"):
        return sys.executable
    if not await asyncio.to_thread((_ROOT / "Makefile").is_file):
        raise TorchMissing(
            "training needs an environment with ekiben[export,training]: name its Python in EKIBEN_TRAINING_PYTHON"
        )
    await _make(f"{_BESIDE}/.installed")  # nothing to do where it is up to date
    return str(_ROOT / _BESIDE / "bin" / "python")


async def _make(target: str) -> None:
    process = await start_process(
        "make",
        "--no-print-directory",
        target,
        cwd=_ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_MAKE_S):
            _, said = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with all that make has started
        await process.wait()
        raise
    if process.returncode != 0:
        lines = said.decode(errors="replace").strip().splitlines() or ["make said nothing"]
        raise TorchMissing(f"torch's environment could not be made (make {target}): {lines[-1][:300]}")
