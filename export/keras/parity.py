"""Parity: differences between ONNX Runtime and Keras on equal pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.keras.graph import GREY
from export.keras.messages import RAW_STD, ConversionRequest, MeasuredParity
from models.onnx_import.checks import Refused, first_line

TOLERANCE = 1e-3
"""The largest accepted difference, in standard deviations of the output."""

ROUNDING = 1e-5
"""What float32 may lose of the largest value, where the output hardly varies: a network that was never trained."""

BATCHES = (1, 2, 5)
SEED = 7
_SIDES = ((96, 128), (160, 96))  # of a model that takes any size: not square, multiples of 32

Array = NDArray[Any]


def images(batch: int, height: int, width: int, *, seed: int = SEED) -> Array:
    """uint8 [batch, height, width, 3]: seeded coarse patterns with noise, so that deep layers differ, too."""
    source = np.random.default_rng([seed, batch, height, width])
    coarse = source.integers(0, 256, (batch, 8, 8, 3))
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    noise = source.integers(-40, 41, (batch, height, width, 3))
    pixels: Array = np.clip(coarse[:, rows][:, :, columns] + noise, 0, 255).astype(np.uint8)
    return pixels


def normalised(pixels: Array, request: ConversionRequest) -> Array:
    """float32 of the shape of ``pixels`` [N, H, W, 3], as the server would prepare them."""
    if request.bgr:
        pixels = pixels[..., ::-1]
    mean, std = request.mean or (0.0, 0.0, 0.0), request.std or (RAW_STD,) * 3
    offset, scale = np.float32(np.array(mean) * 255), np.float32(1 / (np.array(std) * 255))
    return np.ascontiguousarray((pixels.astype(np.float32) - offset) * scale)


def grey(pixels: Array, *, bgr: bool) -> Array:
    """[N, H, W, 1]: the luminance of [N, H, W, 3], in the type of ``pixels``."""
    weights = np.array(GREY[::-1] if bgr else GREY, np.float32)
    levels: Array = (pixels.astype(np.float32) * weights).sum(axis=-1, keepdims=True, dtype=np.float32)
    return np.rint(levels).astype(np.uint8) if pixels.dtype == np.uint8 else levels


@dataclass(frozen=True)
class Inputs:
    """Seeded images for a model whose input is ``shape`` [N, H, W, C] of ``dtype``; None is dynamic."""

    shape: tuple[int | None, ...]
    dtype: Any
    request: ConversionRequest

    def sizes(self) -> list[tuple[int, int]]:
        """Heights and widths to try."""
        _, height, width, _ = self.shape
        sides = [self.request.size] if self.request.size else list(_SIDES)
        return sides if height is None and width is None else [(height or sides[0][0], width or sides[0][1])]

    def batches(self) -> tuple[int, ...]:
        """Batch sizes to try."""
        return BATCHES if self.shape[0] is None else (self.shape[0],)

    def make(self, batch: int, height: int, width: int) -> tuple[Array, Array]:
        """What the graph takes, as [N, H, W, 3], and what Keras takes, [N, H, W, C]."""
        pixels = images(batch, height, width)
        given = pixels if self.dtype == np.uint8 else normalised(pixels, self.request).astype(self.dtype)
        return given, given if self.shape[3] == 3 else grey(given, bgr=self.request.bgr)


def refuse_training_mode(predict: Callable[[Array], Array], inputs: Inputs) -> None:
    """Refused where ``predict`` gives other values when asked again, or for an image among others.

    Dropout and augmentation do the first, normalisation by the statistics of the batch does the second. Keras 3.15
    exports a model with augmentation layers in this way (``model.export``).
    """
    _, own = inputs.make(max(inputs.batches()), *inputs.sizes()[0])
    first = _run("Keras", partial(predict, own))
    allowed = _allowed(float(first.std()), float(np.abs(first).max()))
    how = None
    if not all(np.abs(_run("Keras", partial(predict, own)) - first).max() <= allowed for _ in range(3)):
        how = "gives other values when it is asked again"
    elif len(own) > 1 and inputs.shape[0] is None:
        alone = _run("Keras", partial(predict, own[:1]))
        if not np.abs(alone - first[:1]).max() <= allowed:
            how = "gives an image other values when other images are in its batch"
    if how is not None:
        raise Refused(
            f"it {how}, so it was exported in training mode, as model.export of Keras 3 does where augmentation layers "
            "are in the model; convert the .keras file, or export it with training=False"
        )


def measure(
    onnx_file: Path, predict: Callable[[Array], Array], expect: Callable[[Array], Array], inputs: Inputs
) -> MeasuredParity:
    """Compare ``onnx_file``, which takes [N, 3, H, W], with what Keras predicts on batches of BATCHES images.

    ``predict`` is Keras on [N, H, W, C]; ``expect`` turns what it gives into what the graph should give. Refused where
    they differ by more than TOLERANCE times the spread, or a run fails.
    """
    import onnxruntime as ort

    try:
        session = ort.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exception types share no base but Exception
        raise Refused(f"ONNX Runtime cannot open what it was converted to: {first_line(error)}") from None
    name = session.get_inputs()[0].name
    worst, spread, largest, fed = 0.0, 0.0, 0.0, []
    for height, width in inputs.sizes():
        for batch in inputs.batches():
            given, own = inputs.make(batch, height, width)
            expected = _run("Keras", partial(_expected, predict, expect, own))
            got = _run("ONNX Runtime", partial(_graph, session, name, given))
            at = f"a batch of {batch} x {height} x {width}"
            if got.shape != expected.shape:
                raise Refused(f"ONNX Runtime gives {list(got.shape)} where Keras gives {list(expected.shape)} on {at}")
            spread, largest = max(spread, float(expected.std())), max(largest, float(np.abs(expected).max()))
            found, allowed = float(np.abs(got.astype(np.float64) - expected).max()), _allowed(spread, largest)
            if not found <= allowed:
                raise Refused(
                    f"ONNX Runtime differs from Keras by {found:.3g} on {at}; at most {allowed:.3g} is accepted"
                )
            worst = max(worst, found)
            fed.append(f"{batch}x{height}x{width}x{inputs.shape[3]}")
    said = f"seeded images (seed {SEED}) of {', '.join(fed)}; values up to {largest:.3g} with a standard deviation of "
    said += f"{spread:.3g}, which multiplies the tolerance"
    return MeasuredParity(worst, TOLERANCE, spread, largest, said)


def _allowed(spread: float, largest: float) -> float:
    return max(TOLERANCE * spread, ROUNDING * largest)


def _expected(predict: Callable[[Array], Array], expect: Callable[[Array], Array], pixels: Array) -> Array:
    return expect(predict(pixels))


def _graph(session: Any, name: str, pixels: Array) -> Array:
    return np.asarray(session.run(None, {name: _first(pixels)})[0])


def _first(pixels: Array) -> Array:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def _run(what: str, run: Callable[[], Array]) -> Array:
    try:
        values = np.asarray(run())
    except Exception as error:  # exception types of TensorFlow and ONNX Runtime share no base but Exception
        raise Refused(f"{what} cannot run it: {first_line(error)}") from None
    if not np.isfinite(values).all():
        raise Refused(f"{what} gives values that are no finite numbers")
    return values
