"""What the command line and the child process that converts tell each other."""

from __future__ import annotations

from dataclasses import dataclass, field

Triple = tuple[float, float, float]

RAW_STD = 1 / 255
"""The std that undoes the scaling to 0-1, so that a model gets pixels of 0 to 255."""


@dataclass(frozen=True)
class ConversionRequest:
    """What is to be converted, and how.

    ``source``: a .keras or .h5 file or the folder of a SavedModel; ``target``: the ONNX file to write. ``labels`` is
    their number. ``mean`` and ``std``: of pixels scaled to 0-1; None: 0 and ``RAW_STD`` if the model scales pixels
    itself. ``bgr``: the order of channels in which ``mean``, ``std`` and the model count. ``activation``: what the
    output holds; None: as the last operator says. ``output_name``: which output, where a model has several.
    ``signature``: of a SavedModel. ``size``: height and width to convert it for, where the model takes any.
    """

    source: str
    target: str
    task: str
    labels: int
    mean: Triple | None
    std: Triple | None
    bgr: bool = False
    activation: str | None = None
    output_name: str | None = None
    signature: str | None = None
    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class MeasuredParity:
    """The largest absolute difference between ONNX Runtime and Keras; ``inputs`` says on what.

    ``spread`` and ``largest``: the largest standard deviation and the largest absolute value of Keras' outputs.
    """

    max_abs: float
    tolerance: float
    spread: float
    largest: float
    inputs: str


@dataclass(frozen=True)
class Conversion:
    """What was written: a graph that takes float32 or uint8 [N, 3, H, W].

    ``activation``: logits, probabilities or sigmoid. ``description``: framework, version and class of the model.
    ``notes``: sentences for the person who converts.
    """

    activation: str
    mean: Triple
    std: Triple
    description: str
    parity: MeasuredParity
    notes: list[str] = field(default_factory=list)
