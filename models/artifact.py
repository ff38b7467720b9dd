"""The artifact: the files of one exported network, and the ``manifest.json`` that describes them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ekiben.errors import BadModelFile

MANIFEST = "manifest.json"
ONNX = "model.onnx"
TORCHSCRIPT = "model.torchscript.pt"
ENCODER, MASK_PROMPT, DECODER = "encoder.onnx", "mask_prompt.onnx", "decoder.onnx"
"""The graphs of a Segment Anything artifact; models/sam/graphs.py says what each takes and gives."""

MAX_MASK_CLASSES = 256  # a class map has one byte a pixel

Task = Literal["classify", "segment", "masks"]
Layout = Literal["NCHW", "NHWC"]
Color = Literal["RGB", "BGR"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "bilinear_no_antialias"]
"""Pillow's filters, which average over all pixels that become one; ``bilinear_no_antialias`` looks at four of them, as
TensorFlow and Keras do unless told otherwise."""
Activation = Literal["logits", "probabilities", "sigmoid"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class GraphInput(_Frozen):
    """The one image input of a graph. A dimension that is None is dynamic; ``height`` and ``width`` are in pixels."""

    name: str
    layout: Layout = "NCHW"
    color: Color = "RGB"
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    batch: int | None = None
    height: int | None = None
    width: int | None = None


class GraphOutput(_Frozen):
    """The one output that is read: [N, C] for classify; [N, C, H, W], or [N, H, W, C] with NHWC, for segment."""

    name: str
    activation: Activation = "logits"
    layout: Layout = "NCHW"
    threshold: float = Field(
        default=0.5, gt=0, lt=1, description="unet with one channel: the probability from which a pixel is class 1."
    )


class Tiling(_Frozen):
    """unet: the image is not resized but cut into tiles of the graph's size; they overlap by this share."""

    overlap: float = Field(default=0.5, ge=0, le=0.75)


class Preprocess(_Frozen):
    """How an image becomes the graph's input, in this order.

    ``shorter_side``: resize so that the shorter side has this many pixels (the longer one is truncated to whole
    pixels, as torchvision's Resize does); ``center_crop``: then keep a central square of this side.
    ``crop_share``: instead, keep a central square of this share of the shorter side, in whole pixels (side and
    corner rounded down), and resize it to the input.
    ``longer_side``: instead, resize so that the longer side has this many pixels (both sides rounded half up), then
    pad with zeros at the right and the bottom, after the normalisation, up to the input.
    None of them: resize the whole image to the input's height and width.
    ``mean`` and ``std`` are of pixels scaled to 0-1, in the order of ``GraphInput.color``.
    ``value_range``: the pixel values that are black and white, where a request has no range; None: as the image says.
    """

    shorter_side: int | None = Field(default=None, ge=1)
    center_crop: int | None = Field(default=None, ge=1)
    crop_share: float | None = Field(default=None, gt=0, le=1)
    longer_side: int | None = Field(default=None, ge=1)
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    value_range: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _one_geometry(self) -> Preprocess:
        if self.crop_share is not None and (self.shorter_side or self.center_crop):
            raise ValueError("crop_share excludes shorter_side and center_crop")
        if self.longer_side is not None and (self.shorter_side or self.center_crop or self.crop_share):
            raise ValueError("longer_side excludes shorter_side, center_crop and crop_share")
        if self.center_crop is not None and self.shorter_side is None:
            raise ValueError("center_crop needs shorter_side")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


class FileInfo(_Frozen):
    """Checksum and size of one file of an artifact."""

    sha256: str
    bytes: int


class Parity(_Frozen):
    """Largest absolute differences between the outputs of torch, or of Keras, and of each export, on equal inputs."""

    onnx_max_abs: float
    torchscript_max_abs: float | None = None
    tolerance: float = Field(description="What was accepted; multiplied by their spread where inputs says so.")
    inputs: str = Field(description="The inputs: batch sizes, shapes, and the seed or the images.")
    cases: dict[str, float] = Field(
        default_factory=dict, description="The differences by case, where a model has several graphs or kinds of input."
    )


class Agreement(_Frozen):
    """How a lower precision agrees with the one it was made from: IoU of their masks.

    ``proven`` is false where the weights are random: their reaction to rounding says nothing about trained weights.
    """

    reference: str = Field(description="What it was compared with: the precision, and the artifact's digest.")
    mask_iou_mean: float
    mask_iou_min: float
    proven: bool
    inputs: str = Field(description="The images and prompts.")


class Trial(_Frozen):
    """The most that a trial run of an imported graph took for one image of this size, in pixels, on one thread.

    Its limits of time and memory when it is served come from these (models/engine/graph_limits.py).
    """

    seconds: float
    memory_bytes: int
    height: int
    width: int


class Weights(_Frozen):
    """Where the weights come from. Every listing of a model shows the kind ``random``."""

    kind: Literal["published", "random", "checkpoint", "imported", "trained"]
    detail: str = ""
    sha256: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} ({self.detail})" if self.detail else self.kind


class Manifest(_Frozen):
    """Everything that a family needs to know of its network: sizes, means and labels are never constants in code."""

    format: Literal[1] = 1
    family: str = Field(pattern=r"^[a-z0-9_]{1,40}$", description="A row of models/catalog.py.")
    task: Task
    architecture: str = ""
    input: GraphInput
    output: GraphOutput | None = Field(default=None, description="None where a family has graphs of its own (sam).")
    preprocess: Preprocess
    tiling: Tiling | None = Field(default=None, description="unet: None where the whole image is resized.")
    labels: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    weights: Weights
    licence: str = "unknown"
    source: str = "unknown"
    precision: Literal["float32", "float16", "int8", "bfloat16"] = "float32"
    opset: int
    parity: Parity | None = None
    agreement: Agreement | None = None
    trial: Trial | None = Field(default=None, description="Of an imported graph; not part of the digest.")
    files: dict[str, FileInfo] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.task == "masks":
            if self.labels or self.output is not None:
                raise ValueError(f"a {self.family} has neither labels nor the output of a single graph")
            return self
        if not self.labels:
            raise ValueError(f"labels are missing: a {self.family} has at least one")
        if self.output is None:
            raise ValueError(f"a {self.family} says which output is read")
        if self.task == "segment" and len(self.palette) != len(self.labels):
            raise ValueError(f"{len(self.labels)} labels but {len(self.palette)} palette colours")
        if self.task == "segment" and len(self.labels) > MAX_MASK_CLASSES:
            raise ValueError(f"{len(self.labels)} labels, but a mask has one byte a pixel: {MAX_MASK_CLASSES} at most")
        return self

    @property
    def only_output(self) -> GraphOutput:
        """The output of a family with a single graph. ValueError for another."""
        if self.output is None:
            raise ValueError(f"a {self.family} has no single output")
        return self.output

    @property
    def graph_bytes(self) -> int:
        """Bytes of the ONNX files."""
        return sum(info.bytes for name, info in self.files.items() if not name.endswith(".pt"))

    @property
    def digest(self) -> str:
        """SHA-256, in hexadecimal, over names and checksums of the files, and the manifest without measurements."""
        text = "\n".join(f"{name} {info.sha256}" for name, info in sorted(self.files.items()))
        # A field that came later is left out where it says nothing: the digest of an older artifact stays.
        later = {"value_range"} if self.preprocess.value_range is None else set()
        left_out: dict[str, Any] = {"files": True, "metrics": True, "trial": True, "preprocess": later}
        return hashlib.sha256((text + "\n" + self.model_dump_json(exclude=left_out)).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal. OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_info(path: Path) -> FileInfo:
    """Checksum and size of a file. OSError when it cannot be read."""
    return FileInfo(sha256=sha256_of(path), bytes=path.stat().st_size)


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write ``manifest.json`` with the checksums of the folder's files; gives the manifest with these."""
    files = {
        str(path.relative_to(folder)): file_info(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = manifest.model_copy(update={"files": files})
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n")
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact folder. BadModelFile when it is missing or not a manifest."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise BadModelFile(f"{path} is missing: an artifact folder has a {MANIFEST}") from None
    except ValidationError as error:
        first = error.errors()[0]
        raise BadModelFile(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def verify(folder: Path, manifest: Manifest) -> None:
    """Check every file against its checksum. BadModelFile names the first file that is missing or differs."""
    for name, info in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise BadModelFile(f"{path} is missing")
        if path.stat().st_size != info.bytes or sha256_of(path) != info.sha256:
            raise BadModelFile(f"{path} does not have the checksum of its manifest ({info.sha256})")


def voc_palette(classes: int) -> tuple[tuple[int, int, int], ...]:
    """Pascal VOC's colour map, RGB 0-255, for at most 256 classes: the bits of the index, spread over R, G and B."""
    colours = []
    for index in range(classes):
        red = green = blue = 0
        value = index
        for bit in range(7, -1, -1):
            red |= (value & 1) << bit
            green |= (value >> 1 & 1) << bit
            blue |= (value >> 2 & 1) << bit
            value >>= 3
        colours.append((red, green, blue))
    return tuple(colours)
