"""Sessions: the graph of an artifact, ready to run batches, on ONNX Runtime or TorchScript."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import BadModelFile, Refusal, Unavailable
from models.artifact import ONNX, Manifest
from models.engine.cancellation import RunCancellation, run_session
from models.engine.graph_limits import GraphGuard, shrink_arena, use_arena
from models.engine.session_options import SessionOptions

FloatArray = NDArray[np.floating[Any]]


class Session(Protocol):
    """One loaded graph. ``run`` is called by several threads at once. ``device``: cpu or cuda.

    ``max_batch``: the fixed batch of the graph, None where it is dynamic.
    """

    device: str
    max_batch: int | None

    def run(self, batch: NDArray[np.generic], cancellation: RunCancellation | None = None) -> FloatArray:
        """The manifest's output [N, ...] for ``batch`` [N, ...]. A run that ``cancellation`` stops raises an error."""
        ...

    def close(self) -> None:
        """Free the memory of the graph. No run may be under way."""
        ...


class OnnxSession:
    """A graph on ONNX Runtime. A graph of fixed batch is fed with zeros for the rows that are missing."""

    def __init__(
        self, folder: Path, manifest: Manifest, options: SessionOptions, guard: GraphGuard | None = None
    ) -> None:
        self._guard = guard
        self._session, self.device = open_graph(folder / ONNX, options, options.threads, guard=guard)
        self._input = manifest.input.name
        self._outputs = [manifest.only_output.name]
        self.max_batch = manifest.input.batch
        self._fixed = manifest.input.batch

    def run(self, batch: NDArray[np.generic], cancellation: RunCancellation | None = None) -> FloatArray:
        """The output [N, ...] for ``batch`` [N, ...]. ValueError for more rows than the graph takes."""
        count = len(batch)
        if self._fixed is None or count == self._fixed:
            return self._run(batch, cancellation)
        if count > self._fixed:
            raise ValueError(f"a batch of {count} for a graph that takes {self._fixed}")
        padding = np.zeros((self._fixed - count, *batch.shape[1:]), batch.dtype)
        return self._run(np.concatenate([batch, padding]), cancellation)[:count]

    def _run(self, batch: NDArray[np.generic], cancellation: RunCancellation | None) -> FloatArray:
        feeds = {self._input: batch}
        output: FloatArray = run_session(self._session, self._outputs, feeds, cancellation, self._guard)[0]
        return output

    def close(self) -> None:
        """Free the memory of the session."""
        self._session = None
        if self._guard is not None:
            shrink_arena()


def open_graph(
    path: Path, options: SessionOptions, threads: int, *, arena: bool = True, guard: GraphGuard | None = None
) -> tuple[Any, str]:
    """An ONNX Runtime session on one file, and the device it runs on (cpu or cuda).

    ``threads``: of one run. ``arena`` False: the memory of a run returns to the system at its end, for a graph that
    needs much and runs seldom. ``guard``: of a user's graph. BadModelFile when the graph does not load; Unavailable
    without a required CUDA.
    """
    import onnxruntime as ort

    device = _pick_device(options.device, ort.get_available_providers())
    cpu = "CPUExecutionProvider"
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    settings.log_severity_level = 3
    # Spinning threads would take cores from image decoding and the event loop while they wait for work.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.enable_cpu_mem_arena = arena
    if guard is not None and guard.memory_bytes:
        use_arena(settings, guard.memory_bytes)
    providers = ["CUDAExecutionProvider", cpu] if device == "cuda" else [cpu]

    def attempt() -> Any:
        return ort.InferenceSession(str(path), settings, providers=providers)

    try:
        session = guard.open(attempt, lambda: settings.set_load_cancellation_flag(True)) if guard else attempt()
    except Refusal:
        raise
    except Exception as error:  # ONNX Runtime's own exception types share no base but Exception
        raise BadModelFile(f"ONNX Runtime cannot load {path}: {_first_line(error)}") from error
    if device == "cuda" and "CUDAExecutionProvider" not in session.get_providers():
        # ONNX Runtime falls back to the CPU without an error where the driver or a library of CUDA is missing.
        if options.device == "cuda":
            raise Unavailable("EKIBEN_DEVICE=cuda, but CUDA does not start here (is its driver installed?)")
        device = "cpu"
    return session, device


def _torchscript(
    folder: Path, manifest: Manifest, options: SessionOptions, _guard: GraphGuard | None = None
) -> Session:
    # The one exception to "serving needs no torch": imported only where this runtime is configured.
    try:
        from models.engine.torchscript_session import TorchScriptSession
    except ImportError as error:
        raise Unavailable(f"the torchscript runtime needs torch, which is not installed ({error.name})") from None
    return TorchScriptSession(folder, manifest, options)


RUNTIMES: dict[str, Callable[[Path, Manifest, SessionOptions, GraphGuard | None], Session]] = {
    "onnx": OnnxSession,
    "torchscript": _torchscript,
}


def open_session(folder: Path, manifest: Manifest, options: SessionOptions, guard: GraphGuard | None = None) -> Session:
    """A session on the artifact in ``folder``. ``guard``: of a user's graph. Raises as ``open_graph``."""
    return RUNTIMES[options.runtime](folder, manifest, options, guard)


def _pick_device(wanted: str, providers: list[str]) -> str:
    if wanted == "cpu":
        return "cpu"
    if "CUDAExecutionProvider" in providers:
        return "cuda"
    if wanted == "cuda":
        raise Unavailable("EKIBEN_DEVICE=cuda, but ONNX Runtime offers no CUDA here (install onnxruntime-gpu)")
    return "cpu"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
