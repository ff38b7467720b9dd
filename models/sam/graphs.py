"""The three graphs of Segment Anything, behind verbs: encode, mask_features, decode."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ekiben.errors import BadModelFile
from models.artifact import DECODER, ENCODER, MASK_PROMPT
from models.engine.cancellation import RunCancellation, run_session
from models.engine.session import open_graph
from models.engine.session_options import SessionOptions

Floats = NDArray[np.float32]

FEATURES = ("tokens", "keys", "values", "queries")
"""What the encoder gives besides the embedding: the image side of the decoder's first block, the same for every
prompt on an image. Their layout is the export's own; the first axis is the image (or the prompt, see below)."""

SIDE = 256
"""Pixels of a low-resolution mask's side."""

MASK_BYTES = SIDE * SIDE * 4


@dataclass(frozen=True, slots=True)
class Features:
    """FEATURES by position. First axis 1: shared by all prompts; B: one row per prompt (mask prompts)."""

    arrays: tuple[Floats, ...]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def rows(self, count: int) -> Features:
        """The same, repeated for ``count`` prompts."""
        return Features(tuple(np.repeat(array, count, axis=0) for array in self.arrays))

    def replaced(self, index: list[int], other: Features) -> Features:
        """With the rows ``index`` taken from ``other``, in order."""
        arrays = tuple(array.copy() for array in self.arrays)
        for array, new in zip(arrays, other.arrays, strict=True):
            array[index] = new
        return Features(arrays)


@dataclass(frozen=True, slots=True)
class Decoded:
    """``iou`` [B, 4]: predicted, of the four mask tokens; it is not bounded by 1. ``kept`` [K]: the prompts whose
    masks were made. ``logits`` [K, 4, 256, 256]: low-resolution logits; a mask is where they are above 0."""

    iou: Floats
    kept: NDArray[np.int64]
    logits: Floats


class SamGraphs:
    """Sessions of one artifact.

    The encoder uses all threads for one image. The decoder is opened twice: with all threads for a person who waits
    for one prompt, and with one thread for many prompts side by side, which is 1.5 times as fast in all on two cores.
    """

    def __init__(self, folder: Path, options: SessionOptions, threads: int) -> None:
        self.encoder, self.device = open_graph(folder / ENCODER, options, threads, arena=False)
        self.mask_prompt, _ = open_graph(folder / MASK_PROMPT, options, threads)
        self.decoder, _ = open_graph(folder / DECODER, options, threads)
        self.side_by_side = self.decoder
        if self.device == "cpu" and threads > 1:
            self.side_by_side, _ = open_graph(folder / DECODER, options, 1)
        missing = {"pixels"} - {i.name for i in self.encoder.get_inputs()}
        missing |= {*FEATURES, "embedding"} - {o.name for o in self.encoder.get_outputs()}
        missing |= {*FEATURES, "point_coords", "point_labels", "min_iou"} - {i.name for i in self.decoder.get_inputs()}
        missing |= {"tokens", "mask_input"} - {i.name for i in self.mask_prompt.get_inputs()}
        missing |= {f"masked_{name}" for name in FEATURES} - {o.name for o in self.mask_prompt.get_outputs()}
        missing |= {"iou", "kept", "logits"} - {o.name for o in self.decoder.get_outputs()}
        if missing:
            raise BadModelFile(f"the graphs in {folder} lack {', '.join(sorted(missing))}")

    def blank(self) -> Features:
        """Features of zeros, of the shapes the decoder says."""
        shapes = {i.name: i.shape for i in self.decoder.get_inputs()}
        return Features(tuple(np.zeros((1, *shapes[name][1:]), np.float32) for name in FEATURES))

    def encode(self, pixels: Floats, cancellation: RunCancellation | None = None) -> list[Features]:
        """One Features per image of ``pixels`` [N, 3, 1024, 1024], normalised and padded."""
        outputs = run_session(self.encoder, list(FEATURES), {"pixels": pixels}, cancellation)
        if len(pixels) == 1:
            return [Features(tuple(outputs))]
        # Copies: a row that is kept must not keep its whole batch.
        return [Features(tuple(array[row : row + 1].copy() for array in outputs)) for row in range(len(pixels))]

    def mask_features(
        self, features: Features, mask_input: Floats, cancellation: RunCancellation | None = None
    ) -> Features:
        """The features under each mask prompt: ``mask_input`` [M, 256, 256] are logits of earlier answers."""
        names = [f"masked_{name}" for name in FEATURES]
        feeds = {"tokens": features.arrays[0], "mask_input": mask_input[:, None]}
        return Features(tuple(run_session(self.mask_prompt, names, feeds, cancellation)))

    def decode(
        self,
        features: Features,
        coords: Floats,
        labels: Floats,
        *,
        min_iou: float = -np.inf,
        wide: bool = False,
        cancellation: RunCancellation | None = None,
    ) -> Decoded:
        """Answers to B prompts: ``coords`` [B, P, 2] in the 1024 frame, ``labels`` [B, P] (see prompts.py).

        Masks are made only for prompts of which one of the three multimask IoUs is above ``min_iou``. ``wide``: run
        on one thread, beside others.
        """
        feeds: dict[str, Any] = dict(zip(FEATURES, features.arrays, strict=True))
        feeds |= {"point_coords": coords, "point_labels": labels, "min_iou": np.array(min_iou, np.float32)}
        session = self.side_by_side if wide else self.decoder
        iou, kept, logits = run_session(session, ["iou", "kept", "logits"], feeds, cancellation)
        return Decoded(iou, kept, logits)

    def close(self) -> None:
        del self.encoder, self.mask_prompt, self.decoder, self.side_by_side
