"""Loads a Segment Anything artifact and warms its decoder."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ekiben.errors import BadModelFile
from models.artifact import Manifest, read_manifest
from models.engine.loaded_model import LoadedModel
from models.engine.memory import believable_bytes, resident_bytes
from models.engine.session_options import SessionOptions, cores
from models.model_key import ModelKey
from models.preprocess import Preprocessor
from models.sam.graphs import FEATURES, SIDE, SamGraphs
from models.sam.prompts import FOREGROUND, PADDING


@dataclass(slots=True, eq=False, kw_only=True)
class LoadedSam(LoadedModel):
    """Segment Anything in memory. ``max_concurrency``: encoder runs at once. ``threads``: of one run."""

    graphs: SamGraphs
    preprocess: Preprocessor
    threads: int

    def close(self) -> None:
        """Free the memory of the three graphs."""
        self.graphs.close()

    @property
    def encode_batch(self) -> int:
        """Images per encoder run."""
        return 4 if self.graphs.device == "cuda" else 1

    @property
    def decode_concurrency(self) -> int | None:
        """Decoder runs at once; None: as many as the batcher has threads."""
        return 2 if self.graphs.device == "cuda" else None

    @property
    def prompts_per_run(self) -> int:
        """Prompts of a request that share a decoder run; each takes 12 MB during the run."""
        return 64 if self.graphs.device == "cuda" else 16

    @property
    def points_per_run(self) -> int:
        """Points of a grid per decoder run. On a CPU more are not faster, and other requests wait longer."""
        return 64 if self.graphs.device == "cuda" else 4


def load_sam(key: ModelKey, folder: Path, options: SessionOptions) -> LoadedSam:
    """Open the three graphs and warm the decoder. BadModelFile when they do not load or run.

    The encoder is not run: it takes seconds, and most of its memory is needed only during a run.
    """
    if options.runtime != "onnx":
        raise BadModelFile(f"{key} has ONNX graphs only; serve it with EKIBEN_RUNTIME=onnx")
    manifest = read_manifest(folder)
    threads = options.threads or cores()
    before = resident_bytes()
    graphs = SamGraphs(folder, options, threads)
    took = _warm_up(graphs, manifest)
    return LoadedSam(
        key=key,
        manifest=manifest,
        max_concurrency=1,
        memory_bytes=believable_bytes(resident_bytes() - before, manifest.graph_bytes),
        warmup_s=took,
        graphs=graphs,
        preprocess=Preprocessor(manifest),
        threads=threads,
    )


def _warm_up(graphs: SamGraphs, manifest: Manifest) -> float:
    """Seconds of a decoder run with one point, on features of zeros."""
    try:
        features = graphs.blank()
        point = np.full((1, 2, 2), 512, np.float32), np.array([[FOREGROUND, PADDING]], np.float32)
        graphs.decode(features, *point)
        started = time.perf_counter()
        decoded = graphs.decode(features, *point)
        took = time.perf_counter() - started
    except Exception as error:  # ONNX Runtime's own exceptions share no base
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadModelFile(f"the graphs do not run as those of {manifest.architecture or 'a sam'}: {reason}") from error
    if decoded.iou.shape != (1, 4) or decoded.logits.shape != (1, 4, SIDE, SIDE):
        raise BadModelFile(
            f"the decoder gives {decoded.iou.shape} and {decoded.logits.shape}; {len(FEATURES)} features"
        )
    return took
