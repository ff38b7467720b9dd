"""The child process that reads and runs one ONNX file under limits, and prints its facts as JSON.

Run by ``models.onnx_import.graph_metadata``; a hostile file can exhaust or crash this process and nothing else.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

import numpy as np

from models.onnx_import.checks import Refused, first_line, read_file

DEFAULT_SIDE = 256  # pixels of a trial run, where neither the file nor the options give a size


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
        raise _failure("ONNX Runtime cannot open it", error) from None


def try_out(path: Path, info: dict[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """Facts of the outputs, from a run on one black image and, where the batch is dynamic, on two.

    ``info``: from ``read_file``; ``size``: height and width for a graph that fixes neither. Refused where a run fails.
    """
    session = _open(path)
    height, width = size or (DEFAULT_SIDE, DEFAULT_SIDE)
    shape = [info["batch"] or 1, 3, info["height"] or height, info["width"] or width]
    first = _run(session, info, shape)
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
    if info["batch"] is None:
        # Exporters often leave the batch dynamic and fix a 1 in a Reshape: then the model takes one image at a time.
        try:
            second = _run(session, info, [2, *shape[1:]])
        except (Refused, MemoryError):
            second = []
        for output, value in zip(outputs, second, strict=False):
            output["batched"] = np.shape(value)[:1] == (2,)
    return {"trial_height": shape[2], "trial_width": shape[3], "outputs": outputs}


def _run(session: Any, info: dict[str, Any], shape: list[int]) -> list[Any]:
    pixels = np.zeros(shape, info["dtype"])
    if info["layout"] == "NHWC":
        pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    try:
        return list(session.run(None, {info["input_name"]: pixels}))
    except Exception as error:  # as above
        raise _failure(f"a trial run on zeros of shape {list(pixels.shape)} fails", error) from None


def _failure(what: str, error: Exception) -> Exception:
    """Refused, or MemoryError where the message of ONNX Runtime says so."""
    text = str(error)
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return MemoryError()
    return Refused(f"{what}: {first_line(error)}")


def _range(value: Any) -> dict[str, Any]:
    numbers = isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size > 0
    if not numbers or not np.isfinite(value).all():
        return {"low": None, "high": None, "mean": None}
    return {"low": float(value.min()), "high": float(value.max()), "mean": float(value.mean(dtype=np.float64))}


def main(arguments: list[str]) -> int:
    """Print the report as JSON; the exit status is 0. A height of 0 means that no size is given.

    ``arguments``: PATH LAYOUT HEIGHT WIDTH MEMORY_BYTES CPU_S.
    """
    path, layout, height, width, memory_bytes, cpu_s = arguments
    limit(int(memory_bytes), int(cpu_s))
    size = (int(height), int(width)) if int(height) else None
    report: dict[str, Any]
    try:
        info = read_file(Path(path), layout)
        report = {"facts": info | try_out(Path(path), info, size)}
    except Refused as error:
        report = {"refused": str(error)}
    except MemoryError:
        report = {"refused": f"reading or running it needs more than {int(memory_bytes) >> 20} MB of memory"}
    sys.stdout.write(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
