"""Options of the import of an ONNX file: labels, normalisation, geometry, and how its output is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ekiben.errors import BadInput
from models.artifact import Activation, Color, Interpolation, Layout
from models.results import ValueRange

MAX_LABELS = 100_000
MAX_SIDE = 8192

Triple = tuple[float, float, float]
Palette = tuple[tuple[int, int, int], ...]


def parse_labels(text: str) -> tuple[str, ...]:
    """One label per line, up to the first blank line: published label files continue with prose after it."""
    labels: list[str] = []
    for line in text.removeprefix("\ufeff").splitlines():
        if not line.strip():
            break
        labels.append(line.strip())
    return tuple(labels)


def read_labels(path: Path) -> tuple[str, ...]:
    """The labels of a UTF-8 file. BadInput when it cannot be read or begins with a blank line."""
    labels = parse_labels(_text_of(path, "labels"))
    if not labels:
        raise BadInput(f"{path}: no labels; one per line is expected, from the first line on")
    return labels


def parse_palette(text: str) -> Palette:
    """One colour per line: ``#rrggbb``, or three numbers 0-255 separated by commas or spaces. ValueError otherwise."""
    colours: list[tuple[int, int, int]] = []
    for number, line in enumerate(text.removeprefix("\ufeff").strip().splitlines(), start=1):
        line = line.strip()
        if re.fullmatch(r"#[0-9a-fA-F]{6}", line):
            parts = [int(line[i : i + 2], 16) for i in (1, 3, 5)]
        else:
            parts = [int(word) if word.isdecimal() else 256 for word in _words(line)]
        if len(parts) != 3 or max(parts) > 255:
            raise ValueError(f"line {number} of the palette is neither #rrggbb nor three numbers of 0 to 255")
        colours.append((parts[0], parts[1], parts[2]))
    return tuple(colours)


def read_palette(path: Path) -> Palette:
    """The colours of a file. BadInput when it cannot be read or a line is no colour."""
    try:
        return parse_palette(_text_of(path, "palette"))
    except ValueError as error:
        raise BadInput(f"{path}: {error}") from None


def _text_of(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadInput(f"the {what} file {path} cannot be read: {reason}") from None


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[,\s]+", text.strip()) if word]


def _triple(value: Any) -> Any:
    """One number stands for all three channels; text is split at commas and spaces."""
    if isinstance(value, str):
        value = _words(value)
    if isinstance(value, int | float):
        value = [value]
    if isinstance(value, list | tuple) and len(value) not in (1, 3):
        raise ValueError("one number, or one for each of the three channels, is expected")
    return list(value) * 3 if isinstance(value, list | tuple) and len(value) == 1 else value


def _size(value: Any) -> Any:
    """One number stands for a square; text is split at commas, spaces and an x."""
    if isinstance(value, str):
        value = _words(value.lower().replace("x", " ")) or None  # a field left empty
    if isinstance(value, int):
        value = [value]
    if isinstance(value, list | tuple) and len(value) not in (1, 2):
        raise ValueError("one number, or height and width, is expected")
    return list(value) * 2 if isinstance(value, list | tuple) and len(value) == 1 else value


def _none_if_blank(value: Any) -> Any:
    """A form field that was left empty arrives as an empty string."""
    return None if isinstance(value, str) and not value.strip() else value


def _range(value: Any) -> Any:
    """Two numbers; text is split at commas and spaces."""
    value = _none_if_blank(value)
    return tuple(_words(value)) if isinstance(value, str) else value


_Side = Annotated[int, Field(ge=8, le=MAX_SIDE)]
_Label = Annotated[str, Field(min_length=1, max_length=1000, pattern=r"^[^\x00]*$")]  # PostgreSQL takes no NUL
_Byte = Annotated[int, Field(ge=0, le=255)]


class ImportOptions(BaseModel):
    """Everything that an ONNX file does not contain. Every field takes the text of a form or of a command line.

    ``mean`` and ``std`` are of pixels scaled to 0-1, in the order of ``color``. ``crop``: keep a central square of
    this share of the shorter side. ``shorter_side``: resize to it first (classify then keeps the central square).
    ``range``: the pixel values that are black and white in images of more than 8 bits; by default as each image says.
    ``size`` is height, width: for a graph that fixes neither. ``output_name`` is for a graph with several outputs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: Literal["classify", "segment"]
    labels: Annotated[
        tuple[_Label, ...],
        BeforeValidator(lambda value: parse_labels(value) if isinstance(value, str) else value),
        Field(min_length=1, max_length=MAX_LABELS),
    ]
    output: Activation = "logits"
    mean: Annotated[Triple, BeforeValidator(_triple)] = (0.0, 0.0, 0.0)
    std: Annotated[Triple, BeforeValidator(_triple)] = (1.0, 1.0, 1.0)
    crop: Annotated[float | None, Field(gt=0, le=1), BeforeValidator(_none_if_blank)] = None
    shorter_side: Annotated[_Side | None, BeforeValidator(_none_if_blank)] = None
    size: Annotated[tuple[_Side, _Side] | None, BeforeValidator(_size)] = None
    interpolation: Interpolation = "bilinear"
    range: Annotated[ValueRange | None, BeforeValidator(_range)] = None
    layout: Layout = "NCHW"
    color: Color = "RGB"
    output_name: Annotated[str | None, Field(max_length=200), BeforeValidator(_none_if_blank)] = None
    palette: Annotated[
        tuple[tuple[_Byte, _Byte, _Byte], ...] | None,
        BeforeValidator(_none_if_blank),
        BeforeValidator(lambda value: parse_palette(value) if isinstance(value, str) and value.strip() else value),
    ] = None
    licence: str = Field(default="unknown", min_length=1, max_length=500)
    source: str = Field(default="unknown", min_length=1, max_length=500)

    @model_validator(mode="after")
    def _sound(self) -> ImportOptions:
        if min(self.mean) < -1 or max(self.mean) > 1:
            raise ValueError("mean is of pixels scaled to 0-1: divide one of 0-255 by 255")
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError("range is the value that is black, then the larger one that is white")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        if max(self.std) > 10:
            raise ValueError("std is of pixels scaled to 0-1: divide one of 0-255 by 255")
        if self.crop is not None and self.task != "classify":
            raise ValueError("crop is only for classify: a mask covers the whole image")
        if self.crop is not None and self.shorter_side is not None:
            raise ValueError("crop and shorter_side exclude each other")
        if self.shorter_side is not None and self.task == "segment" and self.size is not None:
            raise ValueError("shorter_side and size exclude each other for segment")
        if self.palette is not None and self.task != "segment":
            raise ValueError("a palette is only for segment")
        return self


def parse_options(given: dict[str, Any]) -> ImportOptions:
    """The options from the fields of a form or a command line. BadInput names the wrong fields and what is wrong."""
    try:
        return ImportOptions.model_validate(given)
    except ValidationError as error:
        sentences = dict.fromkeys(_sentence(dict(one)) for one in error.errors())
        raise BadInput("; ".join(list(sentences)[:3])) from None


def _sentence(error: dict[str, Any]) -> str:
    field = str(error["loc"][0]) if error["loc"] else ""
    message = str(error["msg"]).removeprefix("Value error, ")
    if field == "labels" and error["type"] == "too_short":
        message = "no labels; one per line is expected, from the first line on"
    return f"{field}: {message}" if field else message
