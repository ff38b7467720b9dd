"""The child process that reads and tries one ONNX file under limits, and prints its facts as JSON.

Run by ``models.onnx_import.graph_metadata``; a hostile file can exhaust or crash this process and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from models.onnx_import.checks import Refused, read_file
from models.onnx_import.trial_runs import TrialRuns, end_process, failure

DEFAULT_SIDE = 256  # pixels of a trial run, where neither the file nor the options give a size


_PR_SET_PDEATHSIG = 1


def limit(memory_bytes: int, cpu_s: int) -> None:
    """Lower the limits of this process: address space, CPU seconds, bytes of a written file, core dumps, open files."""
    for what, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, 1 << 20),  # stdout is a file; a report is a few kilobytes
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    # The hard limit is a second more: so the process ends by SIGXCPU, which the parent can name, and not by SIGKILL.
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))


def _open(path: Path) -> Any:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.log_severity_level = 4
    try:
        return ort.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exception types share no base but Exception
        raise failure("ONNX Runtime cannot open it", error) from None


def try_out(
    path: Path,
    info: dict[str, Any],
    size: tuple[int, int] | None,
    pixel_range: tuple[float, float] = (0.0, 1.0),
    cpu_s: float = 150.0,
) -> dict[str, Any]:
    """Facts of the outputs from a run on one black image; facts of its costs from runs on other images and batches.

    ``info``: from ``read_file``; ``size``: height and width for a graph that fixes neither; ``pixel_range``: the
    input's values of a black and a white pixel. Refused where a run fails, or takes more than TrialRuns lets it.
    """
    session = _open(path)
    height, width = size or (DEFAULT_SIDE, DEFAULT_SIDE)
    batch = info["batch"] or 1
    shape = [batch, 3, info["height"] or height, info["width"] or width]
    runs = TrialRuns(session, info, shape, end_process(_refused), cpu_s)
    first = runs.black(batch)
    outputs = [
        {
            "name": output.name,
            "dtype": str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__,
            "shape": list(value.shape) if isinstance(value, np.ndarray) else [],
            "batched": False,
            **_range(value),
        }
        for output, value in zip(session.get_outputs(), first, strict=True)
    ]
    runs.bright(*((0, 255) if info["dtype"] == "uint8" else pixel_range))
    cost = {"seconds": round(runs.seconds, 4), "memory_bytes": runs.memory_bytes}
    if info["batch"] is None:
        # Exporters often leave the batch dynamic and fix a 1 in a Reshape: then the model takes one image at a time.
        try:
            batches = [(count, runs.black(count)) for count in runs.batches()]
        except (Refused, MemoryError):
            batches = []
        for number, output in enumerate(outputs):
            output["batched"] = bool(batches) and all(np.shape(run[number])[:1] == (count,) for count, run in batches)
    return {"trial_height": shape[2], "trial_width": shape[3], "outputs": outputs, "cost": cost}


def _range(value: Any) -> dict[str, Any]:
    numbers = isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size > 0
    if not numbers or not np.isfinite(value).all():
        return {"low": None, "high": None, "mean": None}
    return {"low": float(value.min()), "high": float(value.max()), "mean": float(value.mean(dtype=np.float64))}


def main(arguments: list[str]) -> int:
    """Print the report as JSON; the exit status is 0. A height of 0 means that no size is given.

    ``arguments``: PATH LAYOUT HEIGHT WIDTH LOW HIGH MEMORY_BYTES CPU_S.
    """
    path, layout, height, width, low, high, memory_bytes, cpu_s = arguments
    limit(int(memory_bytes), int(cpu_s))
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # a server that ends wants no answer
    size = (int(height), int(width)) if int(height) else None
    try:
        info = read_file(Path(path), layout)
        report = json.dumps({"facts": info | try_out(Path(path), info, size, (float(low), float(high)), float(cpu_s))})
    except Refused as error:
        report = _refused(str(error))
    except MemoryError as error:
        what = str(error).removesuffix(" fails") or "reading or running it"
        report = _refused(f"{what} needs more than {int(memory_bytes) >> 20} MB of memory")
    sys.stdout.write(report)
    return 0


def _refused(reason: str) -> str:
    return json.dumps({"refused": reason})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
