"""Facts of an ONNX file, found by a child process with limits that reads it and tries it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ekiben.disk_full import NO_SPACE, is_without_space
from ekiben.errors import BadModelFile, StorageFull, TooLarge, Unavailable
from ekiben.temporary_files import scratch
from models.artifact import Layout

MAX_FILE_BYTES = 2 << 30  # what one protobuf message can hold


@dataclass(frozen=True)
class Limits:
    """What the child process may use. Its address space: ``memory_bytes`` and four times the file."""

    memory_bytes: int = 4 << 30
    cpu_s: int = 150
    wall_s: float = 300.0


DEFAULT_LIMITS = Limits()


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OutputInfo(_Frozen):
    """One output of a trial run on zeros.

    ``batched``: runs on several images gave as many rows. ``low``, ``high`` and ``mean`` are None unless all values
    are finite floats.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    batched: bool
    low: float | None
    high: float | None
    mean: float | None


class CostInfo(_Frozen):
    """The most that trial runs took for one image: processor seconds on one thread, and bytes of memory."""

    seconds: float
    memory_bytes: int


class GraphInfo(_Frozen):
    """Facts of an ONNX file, and of a trial run on ``trial_height`` x ``trial_width`` pixels. None: dynamic."""

    input_name: str
    dtype: Literal["float32", "float16", "uint8"]
    layout: Layout
    batch: int | None
    height: int | None
    width: int | None
    trial_height: int
    trial_width: int
    opset: int
    precision: Literal["float32", "float16", "int8", "bfloat16"]
    outputs: tuple[OutputInfo, ...]
    cost: CostInfo


def read_graph(
    path: Path,
    *,
    layout: Layout = "NCHW",
    size: tuple[int, int] | None = None,
    pixel_range: tuple[float, float] = (0.0, 1.0),
    limits: Limits = DEFAULT_LIMITS,
) -> GraphInfo:
    """The facts of an ONNX file, which is read and tried in a child process.

    ``size``: height and width of the runs for a graph of dynamic size; ``pixel_range``: the input's values of a black
    and a white pixel, where the graph takes floats. BadModelFile, with the reason, where the file
    cannot be used; TooLarge above MAX_FILE_BYTES; Unavailable where the child was told to end.
    """
    try:
        file_bytes = path.stat().st_size
    except OSError as error:
        raise BadModelFile(f"{path.name} cannot be read: {error.strerror}") from None
    if file_bytes == 0:
        raise BadModelFile(f"{path.name} is empty")
    if file_bytes > MAX_FILE_BYTES:
        raise TooLarge(f"{path.name} has {file_bytes >> 20} MB; {MAX_FILE_BYTES >> 20} MB are read")
    height, width = size or (0, 0)
    memory_bytes = limits.memory_bytes + 4 * file_bytes
    trial = (height, width, *pixel_range, memory_bytes, limits.cpu_s)
    arguments = [str(path.absolute()), layout, *map(str, trial)]
    report = _run_child(path.name, arguments, limits)
    if "refused" in report:
        raise BadModelFile(f"{path.name}: {report['refused']}")
    try:
        return GraphInfo.model_validate(report["facts"])
    except (KeyError, ValidationError) as error:
        raise BadModelFile(
            f"{path.name}: its inputs and outputs could not be described ({type(error).__name__})"
        ) from None


def _run_child(name: str, arguments: list[str], limits: Limits) -> dict[str, Any]:
    # The child gets no settings and no keys: a file that takes control of it finds none.
    environment = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH", "LANG") if key in os.environ}
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, *(entry for entry in sys.path if entry)])
    environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"  # each thread's stack is address space
    with scratch("import") as folder, tempfile.TemporaryFile() as output:
        child = [sys.executable, "-m", "models.onnx_import.check_process", *arguments]
        try:
            done = subprocess.run(
                child,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
                timeout=limits.wall_s,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise BadModelFile(f"{name}: reading and trying it takes more than {limits.wall_s:g} s") from None
        output.seek(0)
        try:
            report = json.loads(output.read())
        except ValueError:
            report = None
    if done.returncode == 0 and isinstance(report, dict):
        return report
    if is_without_space(tempfile.gettempdir()):
        raise StorageFull(NO_SPACE)
    if done.returncode == -signal.SIGXCPU:
        raise BadModelFile(f"{name}: reading and trying it takes more than {limits.cpu_s} s of processor time")
    if done.returncode == -signal.SIGTERM:  # a server that stops ends the processes below it
        raise Unavailable(f"{name}: the import was stopped", code="stopping", retry_after_s=5)
    how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
    raise BadModelFile(f"{name}: the process that read it ended with {how}; it may need too much memory, or be damaged")
