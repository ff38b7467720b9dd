"""The three graphs of Segment Anything: image encoder, mask prompts, and mask decoder."""

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
"""Outputs of the encoder that the decoder takes: the image side of the decoder's first block, which does not depend on
the prompt. Their layout is the export's own; the first axis is the image, or the prompt (see Features)."""

SIDE = 256
"""Side of a low-resolution mask in pixels."""

MASK_BYTES = SIDE * SIDE * 4
"""Bytes of the float32 logits of one low-resolution mask."""


@dataclass(frozen=True, slots=True)
class Features:
    """The arrays of FEATURES, in order. First axis 1: shared by all prompts; B: one row per prompt (mask prompts)."""

    arrays: tuple[Floats, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays)

    def rows(self, count: int) -> Features:
        """These features repeated for ``count`` prompts."""
        return Features(tuple(np.repeat(array, count, axis=0) for array in self.arrays))

    def replaced(self, index: list[int], other: Features) -> Features:
        """A copy with the rows ``index`` replaced by the rows of ``other``, in order."""
        arrays = tuple(array.copy() for array in self.arrays)
        for array, new in zip(arrays, other.arrays, strict=True):
            array[index] = new
        return Features(arrays)


@dataclass(frozen=True, slots=True)
class Decoded:
    """Output of the decoder for B prompts.

    ``iou`` [B, 4]: predicted IoU of the four mask tokens, not bounded by 1. ``kept`` [K]: the prompts whose masks were
    made. ``logits`` [K, 4, 256, 256]: low-resolution logits; a mask is where they are above 0.
    """

    iou: Floats
    kept: NDArray[np.int64]
    logits: Floats


class SamGraphs:
    """Sessions of one artifact. BadModelFile where a graph does not load or lacks an input or output.

    The encoder uses all threads for one image. On a CPU the decoder is opened twice: with all threads for the low
    latency of one prompt, and with one thread for many prompts side by side, which has 1.5 times the throughput on two
    cores.
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
        """Features of zeros, in the shapes that the decoder takes."""
        shapes = {i.name: i.shape for i in self.decoder.get_inputs()}
        return Features(tuple(np.zeros((1, *shapes[name][1:]), np.float32) for name in FEATURES))

    def encode(self, pixels: Floats, cancellation: RunCancellation | None = None) -> list[Features]:
        """One Features per image of ``pixels`` float32 [N, 3, 1024, 1024], normalised and padded."""
        outputs = run_session(self.encoder, list(FEATURES), {"pixels": pixels}, cancellation)
        if len(pixels) == 1:
            return [Features(tuple(outputs))]
        # Copies: a row that is cached must not keep its whole batch in memory.
        return [Features(tuple(array[row : row + 1].copy() for array in outputs)) for row in range(len(pixels))]

    def mask_features(
        self, features: Features, mask_input: Floats, cancellation: RunCancellation | None = None
    ) -> Features:
        """The features under each of M mask prompts. ``mask_input``: logits [M, 256, 256] of earlier responses."""
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
        """Masks and IoUs of B prompts: ``coords`` [B, P, 2] in pixels of the 1024 x 1024 input, ``labels`` [B, P].

        Labels are those of prompts.py. Masks are made only for prompts of which one of the three multimask IoUs is
        above ``min_iou``. ``wide``: run on one thread, beside other runs.
        """
        feeds: dict[str, Any] = dict(zip(FEATURES, features.arrays, strict=True))
        feeds |= {"point_coords": coords, "point_labels": labels, "min_iou": np.array(min_iou, np.float32)}
        session = self.side_by_side if wide else self.decoder
        iou, kept, logits = run_session(session, ["iou", "kept", "logits"], feeds, cancellation)
        return Decoded(iou, kept, logits)

    def close(self) -> None:
        """Free the memory of the sessions."""
        del self.encoder, self.mask_prompt, self.decoder, self.side_by_side
