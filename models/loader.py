"""From an artifact folder to a warm model: session, family, threads and measured memory."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import BadModelFile
from models.artifact import ONNX, Manifest, read_manifest
from models.catalog import FAMILIES
from models.family import Family
from models.images import Picture
from models.memory import resident_bytes
from models.runtime import RuntimeOptions, Session, cores, open_session

if TYPE_CHECKING:
    from models.engine import ModelKey

# One run of this long on one thread: from here on all cores work on one picture (lower latency) instead of each on
# its own (higher throughput). 150 ms separates EfficientNet-B0 (8 ms) from DeepLabV3-ResNet50 (3 s) with room.
HEAVY_RUN_S = 0.15


@dataclass(slots=True, eq=False)
class Loaded:
    """A model in memory. ``slots``: runs at once that suit it. The engine keeps the last two fields."""

    key: ModelKey
    manifest: Manifest
    family: Family
    session: Session
    slots: int
    memory_bytes: int
    warmup_s: float
    detached: bool = False
    users_left: int = 0

    def run(self, batch: NDArray[np.generic]) -> NDArray[np.floating[Any]]:
        return self.session.run(batch)


def estimate_bytes(folder: Path) -> int:
    """Bytes a model will take, before it is loaded: 1.3 times its graph file, as measured on the shipped networks.

    BadModelFile when there is no such file.
    """
    try:
        return int(1.3 * (folder / ONNX).stat().st_size)
    except OSError as error:
        raise BadModelFile(f"{folder / ONNX} cannot be read: {error.strerror}") from None


def load_artifact(key: ModelKey, folder: Path, options: RuntimeOptions) -> Loaded:
    """Open the artifact and run it once on a grey picture. BadModelFile when it does not load or run."""
    manifest = read_manifest(folder)
    family = FAMILIES[manifest.family](manifest)
    before = resident_bytes()
    threads = options.threads or cores()
    session = open_session(folder, manifest, replace(options, threads=1))
    took = _warm_up(session, family, manifest)
    slots = threads
    if session.device == "cpu" and threads > 1 and took > HEAVY_RUN_S:
        session.close()
        session = open_session(folder, manifest, replace(options, threads=threads))
        took = _warm_up(session, family, manifest)
        slots = 1
    elif session.device == "cuda":
        slots = 2  # one batch runs while the next is prepared
    file_bytes = sum(facts.bytes for name, facts in manifest.files.items() if not name.endswith(".pt"))
    # Other threads allocate meanwhile: the growth is believed between once and four times the file.
    measured = min(max(resident_bytes() - before, file_bytes), 4 * file_bytes + 64_000_000)
    return Loaded(key, manifest, family, session, slots, measured, took)


def _warm_up(session: Session, family: Family, manifest: Manifest) -> float:
    """Seconds of the second of two runs; the first allocates and, on a GPU, compiles."""
    height, width = manifest.input.height or 480, manifest.input.width or 640
    try:
        tensor = family.preprocess(Picture(Image.new("RGB", (width, height), (128, 128, 128)), "image/png"))
        session.run(tensor[None])
        started = time.perf_counter()
        session.run(tensor[None])
    except Exception as error:  # the runtimes' own exceptions share no base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadModelFile(f"the graph does not run as its manifest says: {reason}") from error
    return time.perf_counter() - started
