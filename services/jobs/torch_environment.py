"""The Python with torch, which trains and exports: serving has none, so its environment is made when it is needed."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from ekiben.disk_full import NO_SPACE, is_without_space
from ekiben.errors import Refusal, StorageFull
from services.jobs.child_process import start_process

_ROOT = Path(__file__).parents[2]
_BESIDE = ".venv-torch"
_MAKE_S = 3600.0  # seconds for the environment, which downloads torch


class TorchMissing(Refusal):
    """There is no Python with torch."""

    code = "torch_missing"


@dataclass(frozen=True, slots=True)
class TorchUse:
    """What torch is wanted for. ``packages``: what its Python has to have; ``extras``: of Ekiben that bring them.
    ``code``: of the refusal where it cannot be had."""

    name: str
    packages: tuple[str, ...]
    extras: str
    code: str


TRAINING = TorchUse("training", ("torch", "monai"), "export,training", "training_unavailable")
EXPORTING = TorchUse("exporting", ("torch", "torchvision", "segment_anything"), "export", "provision_unavailable")


async def torch_python(setting: str, use: TorchUse) -> str:
    """The interpreter that ``EKIBEN_TRAINING_PYTHON`` names; else this one, or that of .venv-torch.

    In a checkout with its Makefile the environment is made, which takes minutes. TorchMissing says how to get one.
    """
    if setting:
        if not await asyncio.to_thread(Path(setting).is_file):
            raise TorchMissing(f"EKIBEN_TRAINING_PYTHON is {setting}, and there is no such file", code=use.code)
        return _absolute(setting)
    if all(importlib.util.find_spec(name) for name in use.packages):
        return sys.executable
    if not await asyncio.to_thread((_ROOT / "Makefile").is_file):
        raise TorchMissing(
            f"{use.name} needs a Python with torch, which this one lacks: make one with `python -m venv torch-env && "
            f"torch-env/bin/pip install 'ekiben[{use.extras}]'`, and name torch-env/bin/python in "
            "EKIBEN_TRAINING_PYTHON where the worker is started",
            code=use.code,
        )
    await _make(f"{_BESIDE}/.installed", use)  # nothing to do where it is up to date
    return str(_ROOT / _BESIDE / "bin" / "python")


def _absolute(path: str) -> str:
    """For a child that works in another folder. Links are kept: they would lead out of the environment."""
    return str(Path(path).absolute())


async def _make(target: str, use: TorchUse) -> None:
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
    if process.returncode != 0 and is_without_space(_ROOT):
        raise StorageFull(NO_SPACE)
    if process.returncode != 0:
        lines = said.decode(errors="replace").strip().splitlines() or ["make said nothing"]
        raise TorchMissing(f"torch's environment could not be made (make {target}): {lines[-1][:300]}", code=use.code)
