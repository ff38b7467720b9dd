"""From an artifact folder to a warm model: sessions, family, threads and measured memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import BadModelFile, Refusal
from models.artifact import ONNX, Manifest, read_manifest
from models.catalog import build_family, row_of
from models.engine.cancellation import RunCancellation
from models.engine.graph_limits import GraphGuard, GraphLimits
from models.engine.loaded_model import LoadedModel
from models.engine.memory import believable_bytes, resident_bytes
from models.engine.session import Session, open_session
from models.engine.session_options import SessionOptions, cores
from models.family import Family
from models.images import DecodedImage
from models.model_key import ModelKey

# Seconds of one run on one thread, above which all cores work on one image (lower latency) instead of each on an
# image of its own (higher throughput). 150 ms separates EfficientNet-B0 (8 ms) from DeepLabV3-ResNet50 (3 s) with room.
HEAVY_RUN_S = 0.15


@dataclass(slots=True, eq=False, kw_only=True)
class LoadedNetwork(LoadedModel):
    """A model of one graph: a family around a session."""

    family: Family
    session: Session

    def run(self, batch: NDArray[np.generic], cancellation: RunCancellation | None = None) -> NDArray[np.floating[Any]]:
        """The graph's output for ``batch`` [N, ...], first axis N."""
        return self.session.run(batch, cancellation)

    def close(self) -> None:
        """Free the memory of the session."""
        self.session.close()


def estimate_bytes(folder: Path) -> int:
    """Bytes of memory that a model will take: 1.3 times its graph files, as measured on the shipped networks.

    BadModelFile when there are no graph files.
    """
    try:
        sizes = [path.stat().st_size for path in folder.iterdir() if ".onnx" in path.suffixes]
    except OSError as error:
        raise BadModelFile(f"{folder} cannot be read: {error.strerror}") from None
    if not sizes:
        raise BadModelFile(f"{folder / ONNX} cannot be read: No such file or directory")
    return int(1.3 * sum(sizes))


def load_model(key: ModelKey, folder: Path, options: SessionOptions, limits: GraphLimits | None = None) -> LoadedModel:
    """A warm model of any family. ``limits``: of users' graphs.

    BadModelFile when it does not load or run; Unavailable for a missing device; ModelDisabled where it exceeds a limit.
    """
    load = row_of(read_manifest(folder)).load
    if load is not None:
        return load(key, folder, options)
    return load_artifact(key, folder, options, limits)


def load_artifact(
    key: ModelKey, folder: Path, options: SessionOptions, limits: GraphLimits | None = None
) -> LoadedNetwork:
    """A warm model of one graph: opened, and run twice on a grey image. Raises as ``load_model``."""
    manifest = read_manifest(folder)
    family = build_family(manifest)
    before = resident_bytes()
    threads = options.threads or cores()
    guard = limits.guard(key, manifest) if limits is not None else None
    session = open_session(folder, manifest, replace(options, threads=1), guard)
    took = _warm_up(session, family, manifest, guard)
    max_concurrency = threads
    if session.device == "cpu" and threads > 1 and took > HEAVY_RUN_S:
        session.close()
        session = open_session(folder, manifest, replace(options, threads=threads), guard)
        took = _warm_up(session, family, manifest, guard)
        max_concurrency = 1
    elif session.device == "cuda":
        max_concurrency = 2  # one batch runs while the next is prepared
    measured = believable_bytes(resident_bytes() - before, manifest.graph_bytes)
    return LoadedNetwork(
        key=key,
        manifest=manifest,
        family=family,
        session=session,
        max_concurrency=max_concurrency,
        memory_bytes=measured,
        warmup_s=took,
    )


def _warm_up(session: Session, family: Family, manifest: Manifest, guard: GraphGuard | None) -> float:
    """Seconds of the second of two runs; the first allocates and, on a GPU, compiles."""
    height, width = manifest.input.height or 480, manifest.input.width or 640
    try:
        tensor = family.preprocess(DecodedImage(Image.new("RGB", (width, height), (128, 128, 128)), "image/png"))
        started = time.perf_counter()
        session.run(tensor[None])
        if guard is not None and manifest.trial is None:
            guard.note(time.perf_counter() - started, tensor.size)
        started = time.perf_counter()
        session.run(tensor[None])
    except Refusal:
        raise
    except Exception as error:  # the runtimes' own exceptions share no base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadModelFile(f"the graph does not run as its manifest says: {reason}") from error
    took = time.perf_counter() - started
    if guard is not None:
        guard.note(took, tensor.size)
    return took
