"""Parity: differences between torch, ONNX Runtime and TorchScript on equal pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ekiben.errors import Refusal
from export.recipe import images
from models.artifact import ONNX, TORCHSCRIPT, Parity

TOLERANCE = 1e-3  # largest accepted absolute difference of a logit
SEED = 7

Shape = tuple[int, int, int]
"""Batch, height, width."""


class ParityError(Refusal):
    """An exported graph differs from torch by more than the tolerance, gives another shape, or fails."""

    code = "parity"


def measure_parity(
    network: nn.Module,
    onnx_file: Path,
    torchscript_file: Path,
    shapes: tuple[Shape, ...],
    *,
    tolerance: float = TOLERANCE,
    real: Sequence[Tensor] = (),
    real_from: str = "",
) -> Parity:
    """The largest absolute difference of each export from torch on seeded images of ``shapes``, and on ``real``.

    ``tolerance`` is for logits with a standard deviation up to 1; for a wider spread it is multiplied by that, since
    float32 has so many digits and no more. ``real``: batches float32 [N, 3, H, W] of normalised pixels; ``real_from``
    describes them in the manifest. Raises ParityError when one is above ``tolerance``, is not a number, or an export
    fails or gives another shape.
    """
    session = ort.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    traced = torch.jit.load(str(torchscript_file), map_location="cpu")  # type: ignore[no-untyped-call]
    exports: dict[str, Callable[[Tensor], NDArray[Any]]] = {
        ONNX: lambda pixels: session.run(None, {name: pixels.numpy()})[0],
        TORCHSCRIPT: lambda pixels: traced(pixels).numpy(),
    }
    worst = dict.fromkeys(exports, 0.0)
    spread = 0.0
    with torch.inference_mode():
        for pixels in chain((images(*shape, seed=SEED) for shape in shapes), real):
            batch, _, height, width = pixels.shape
            expected = network(pixels).numpy()
            spread = max(spread, float(expected.std()))
            allowed = tolerance * max(1.0, float(expected.std()))
            for file, run in exports.items():
                fed = f"{file} on images of shape {list(pixels.shape)}"
                found = difference(fed, partial(run, pixels), expected)
                worst[file] = max(worst[file], found)
                if not found <= allowed:
                    raise ParityError(
                        f"{file} differs from torch by {found:.3g} on a batch of {batch} x {height} x {width}; "
                        f"at most {allowed:.3g} is accepted, so nothing was written"
                    )
    fed = f"seeded images (seed {SEED}) of " + ", ".join(f"{n}x3x{height}x{width}" for n, height, width in shapes)
    if real:
        fed = f"{fed}; {real_from}" if shapes else real_from
    if spread > 1:
        fed = f"{fed} (logits with a standard deviation of up to {spread:.3g}, which multiplies the tolerance)"
    return Parity(
        onnx_max_abs=worst[ONNX],
        torchscript_max_abs=worst[TORCHSCRIPT],
        tolerance=tolerance,
        inputs=fed,
    )


def difference(case: str, run: Callable[[], NDArray[Any]], expected: NDArray[np.floating[Any]]) -> float:
    """The largest absolute difference between the result of ``run`` and ``expected``; ``case`` names it in errors.

    Infinity where either has a value that is not finite, since max() does not keep a NaN. Raises ParityError when
    ``run`` fails or returns another shape.
    """
    try:
        got = run()
    except Exception as error:  # ONNX Runtime's and TorchScript's own exception types share no base but Exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ParityError(f"{case} fails: {reason[:200]}") from None
    if got.shape != expected.shape:
        raise ParityError(f"{case} gives {list(got.shape)} where torch gives {list(expected.shape)}")
    worst = float(np.abs(got - expected).max())
    return worst if math.isfinite(worst) else math.inf
