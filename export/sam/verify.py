"""Parity of the three graphs of Segment Anything with the package's network, on equal images and prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.recipe import images
from export.sam.decoder import ABSENT
from export.sam.reference_package import Sam
from export.sam.writer import FEATURES
from export.verify import SEED, TOLERANCE, ParityError, difference
from models.artifact import DECODER, ENCODER, MASK_PROMPT, Parity

PADDING = -1.0
"""Label of the point that the reference adds where a prompt has no box."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class PromptCase:
    """A prompt in pixels of the 1024 x 1024 frame: points (x, y, label) and a box (x0, y0, x1, y1).

    ``masked``: whether earlier logits are a mask prompt too.
    """

    points: tuple[tuple[float, float, float], ...] = ()
    box: tuple[float, float, float, float] | None = None
    masked: bool = False

    def rows(self) -> list[tuple[float, float, float]]:
        """Points (x, y, label) for the decoder's graph, with the reference's padding or the corners of the box."""
        if self.box is None:
            return [*self.points, (0.0, 0.0, PADDING)]
        return [*self.points, (*self.box[:2], 2.0), (*self.box[2:], 3.0)]


_POINT = PromptCase(((500.0, 375.5, 1.0),))
_BOX = PromptCase(box=(100.0, 200.0, 612.25, 701.0))
_BOTH = PromptCase(((300.0, 400.0, 1.0), (120.0, 690.0, 0.0)), box=(100.0, 200.0, 612.25, 701.0))
_GRID = tuple(PromptCase(((64.0 + 128 * column, 64.0 + 512 * row, 1.0),)) for row in (0, 1) for column in (0, 2, 4, 7))

CASES: dict[str, tuple[PromptCase, ...]] = {
    "one point": (_POINT,),
    "eight prompts": _GRID,
    "box": (_BOX,),
    "box and points": (_BOTH,),
    "mask prompt": (
        PromptCase(((500.0, 375.5, 1.0),), masked=True),
        PromptCase(box=(0.0, 0.0, 300.0, 300.0), masked=True),
    ),
    "mixed lengths": (_POINT, _BOX, _BOTH, PromptCase(((10.0, 10.0, 0.0), (900.0, 900.0, 1.0), (5.0, 700.0, 1.0)))),
}


class Sessions:
    """The three graphs of ``folder`` in ONNX Runtime; inputs and outputs by name. ``encoder``: another encoder file."""

    def __init__(self, folder: Path, *, encoder: Path | None = None) -> None:
        files = {name: folder / name for name in (ENCODER, MASK_PROMPT, DECODER)}
        files[ENCODER] = encoder or files[ENCODER]
        self._open = {
            name: ort.InferenceSession(str(file), providers=["CPUExecutionProvider"]) for name, file in files.items()
        }

    def encode(self, pixels: Floats) -> dict[str, Any]:
        """embedding and features, by name, of pixels float32 [N, 3, 1024, 1024]."""
        return self._run(ENCODER, {"pixels": pixels})

    def masked(self, features: dict[str, Any], mask_input: Floats) -> dict[str, Any]:
        """Features, by name, with each of the mask prompts [M, 1, 256, 256] added."""
        outputs = self._run(MASK_PROMPT, {"tokens": features["tokens"], "mask_input": mask_input})
        return {name.removeprefix("masked_"): values for name, values in outputs.items()}

    def decode(
        self, features: dict[str, Any], prompts: tuple[PromptCase, ...], min_iou: float = -np.inf
    ) -> dict[str, Any]:
        """iou, kept and logits, by name (see ``PromptDecoder``); absent points pad the shorter prompts."""
        rows = [prompt.rows() for prompt in prompts]
        longest = max(map(len, rows))
        table = np.array([each + [(0.0, 0.0, ABSENT)] * (longest - len(each)) for each in rows], np.float32)
        feeds = {name: features[name] for name in FEATURES}
        feeds |= {"point_coords": table[:, :, :2], "point_labels": table[:, :, 2]}
        return self._run(DECODER, feeds | {"min_iou": np.array(min_iou, np.float32)})

    def _run(self, name: str, feeds: dict[str, Any]) -> dict[str, Any]:
        session = self._open[name]
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, feeds), strict=True))


@torch.no_grad()
def reference_answer(sam: Sam, embedding: Tensor, prompt: PromptCase, mask: Tensor) -> tuple[Tensor, Tensor]:
    """iou [1, 4] and logits [1, 4, 256, 256] of the package, for an embedding [1, 256, 64, 64].

    ``mask``: logits [1, 1, 256, 256], used by prompts that are ``masked``.
    """
    points = torch.tensor(prompt.points).unsqueeze(0)
    sparse, dense = sam.prompt_encoder(
        points=(points[:, :, :2], points[:, :, 2]) if prompt.points else None,
        boxes=torch.tensor([prompt.box]) if prompt.box is not None else None,
        masks=mask if prompt.masked else None,
    )
    logits, iou = sam.mask_decoder.predict_masks(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )
    return iou, logits


def measure_parity(sam: Sam, folder: Path, *, tolerance: float = TOLERANCE) -> Parity:
    """The largest absolute difference between the graphs in ``folder`` and the package, by case.

    The exported decoder gets the outputs of the exported encoder, the package's decoder those of its encoder.
    ``tolerance`` is for values with a standard deviation up to 1; for logits, with 5 to 10, it is multiplied by it.
    Raises ParityError when a case exceeds it, is not a number, or a graph fails.
    """
    side = sam.image_encoder.img_size
    pixels = images(2, side, side, seed=SEED)
    sessions = Sessions(folder)
    cases: dict[str, float] = {}

    def check(case: str, run: Callable[[], Any], expected: Tensor) -> None:
        worst, allowed = difference(case, run, expected.numpy()), tolerance * max(1.0, expected.std().item())
        cases[case] = max(cases.get(case, 0.0), worst)
        if not worst <= allowed:
            raise ParityError(
                f"{case}: the graphs differ from torch by {worst:.3g}; at most {allowed:.3g} is accepted, "
                "so nothing was written"
            )

    with torch.inference_mode():
        embeddings = torch.cat([sam.image_encoder(each.unsqueeze(0)) for each in pixels])
    encoded: dict[str, Any] = {}

    def encode(count: int) -> Any:
        encoded.update(sessions.encode(pixels[:count].numpy()))
        return encoded["embedding"]

    check("encoder, two images", lambda: encode(2), embeddings)
    check("encoder, one image", lambda: encode(1), embeddings[:1])
    mask = reference_answer(sam, embeddings[:1], _POINT, torch.empty(0))[1][:, 1:2]
    for case, prompts in CASES.items():
        features = encoded
        if prompts[0].masked:
            features = sessions.masked(encoded, np.repeat(mask.numpy(), len(prompts), axis=0))
        answers = [reference_answer(sam, embeddings[:1], prompt, mask) for prompt in prompts]
        got: dict[str, Any] = {}
        check(case, partial(_decode_into, got, sessions, features, prompts), torch.cat([a[0] for a in answers]))
        check(case, partial(got.__getitem__, "logits"), torch.cat([a[1] for a in answers]))
    return Parity(
        onnx_max_abs=max(cases.values()),
        tolerance=tolerance,
        inputs=f"seeded images (seed {SEED}) of {side}x{side}; embeddings, predicted IoUs and logits (for "
        "which the tolerance is times their standard deviation)",
        cases=cases,
    )


def _decode_into(
    got: dict[str, Any], sessions: Sessions, features: dict[str, Any], prompts: tuple[PromptCase, ...]
) -> Any:
    got.update(sessions.decode(features, prompts))
    return got["iou"]
