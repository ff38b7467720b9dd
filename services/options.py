"""Options of the inference operations: one model each for checking, for OpenAPI and for jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ekiben.errors import BadInput, TooLarge
from models.masks.cutouts import CutStyle
from models.sam.auto_options import AutoOptions
from services import defaults
from services.mask_formats import Format

MAX_JSON = 4_000_000
"""Characters of an option that is JSON."""

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class InferenceOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int | None = Field(default=None, ge=1, description="Version of the model; the active one by default.")
    image_id: str | None = Field(default=None, description="A stored image instead of a file.")
    store: bool = Field(default=True, description="false: neither row nor files are kept.")


class ClassifyOptions(InferenceOptions):
    model: str = Field(default=defaults.CLASSIFY, pattern=NAME, description="A model that classifies.")
    top_k: int | None = Field(
        default=None, ge=1, description="How many classes to answer. 5, or all where there are fewer."
    )


class SegmentOptions(InferenceOptions):
    model: str | None = Field(
        default=None,
        pattern=NAME,
        description=f"A model that segments. By default {' or, where that has no version, '.join(defaults.SEGMENT)}.",
    )
    render: Literal["mask", "color", "overlay", "probability", "nifti", "dicom_seg"] | None = Field(
        default=None,
        description="With Accept: image/png, which picture to answer (mask by default). A NIfTI volume is answered as "
        "nifti with Accept: application/gzip, a DICOM file as dicom_seg with Accept: application/dicom.",
    )
    flips: bool = Field(
        default=False,
        description="Average over the picture and its three mirror images: 4 times the work. U-Nets only.",
    )
    probability: bool = Field(
        default=False,
        description="Store the probability of class 1 too: a 16-bit grey PNG of 65535ths. U-Nets of two classes only.",
    )

    @property
    def wants_probability(self) -> bool:
        return self.probability or self.render == "probability"


PROMPTS = (
    'JSON: a list of prompts, each {"points": [[x, y, label], ...], "box": [x0, y0, x1, y1], "mask_input": id}, with '
    "one of these at least; label 1 is foreground, 0 background; pixels of the picture as the user sees it."
)


class MasksOptions(InferenceOptions):
    model: str = Field(default=defaults.MASKS, pattern=NAME, description="A Segment Anything model.")
    prompts: str | None = Field(default=None, description=PROMPTS + " Without any: the whole picture's box.")
    multimask: bool = Field(
        default=True, description="Three masks per prompt (whole, part, part of a part); false: one."
    )
    format: Format = Field(default="rle", description="What segmentation holds.")
    logits: bool = Field(
        default=True, description="false: do not keep the logits that mask_input refines (256 KB a mask); id is null."
    )


class AutoMasksOptions(InferenceOptions, AutoOptions):
    model: str = Field(default=defaults.MASKS, pattern=NAME, description="A Segment Anything model.")
    format: Format = Field(default="rle", description="What segmentation holds.")

    @property
    def auto(self) -> AutoOptions:
        return AutoOptions(**{name: getattr(self, name) for name in AutoOptions.model_fields})


class CutoutsOptions(InferenceOptions, AutoOptions):
    model: str = Field(default=defaults.MASKS, pattern=NAME, description="A Segment Anything model.")
    prompts: str | None = Field(default=None, description=PROMPTS + " Without any: the automatic masks.")
    multimask: bool = Field(default=False, description="true: of three masks per prompt cut the best.")
    min_pixels: int = Field(default=0, ge=0, le=64_000_000, description="Smaller objects are left out.")
    padding_px: int = Field(default=0, ge=0, le=10_000, description="Transparent pixels around the object's box.")
    feather_px: float = Field(default=0, ge=0, le=100, description="Softness of the edge; 0 is hard.")
    frame: Literal["box", "full"] = Field(default="box", description="Crop to the object, or keep the whole frame.")
    limit: int = Field(
        default=100, ge=1, le=1000, description="At most so many: the first prompts, or the largest masks."
    )

    @property
    def auto(self) -> AutoOptions:
        return AutoOptions(**{name: getattr(self, name) for name in AutoOptions.model_fields})

    @property
    def style(self) -> CutStyle:
        return CutStyle(self.frame, self.padding_px, self.feather_px)


IDEMPOTENCY_KEY = r"[\x21-\x7e]{1,255}"
"""Visible ASCII characters."""


class JobTerms(BaseModel):
    """Of a request that becomes a job, and of batches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    priority: int = Field(default=5, ge=0, le=9, description="As a job: 9 goes first, 0 last.")
    timeout_s: float | None = Field(
        default=None, gt=0, le=30 * 86_400, description="As a job: its time limit. EKIBEN_JOB_TIMEOUT_S otherwise."
    )
    webhook: str | None = Field(default=None, description="As a job: address that is told when it is over.")


OptionsT = TypeVar("OptionsT", bound=BaseModel)


def check(kind: type[OptionsT], given: Mapping[str, Any]) -> OptionsT:
    """Options from what was given. BadInput names what is wrong or unknown."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise BadInput("; ".join(_sentence(e, kind) for e in error.errors()[:5])) from None


def _sentence(error: Any, kind: type[BaseModel]) -> str:
    name = short(".".join(map(str, error["loc"])))
    if error["type"] == "missing":
        return f"{name} is missing"
    if error["type"] == "extra_forbidden":
        return f"there is no option {name}; there are {', '.join(kind.model_fields)}"
    message: str = error["msg"].removeprefix("Value error, ")
    of = f", not {short(repr(error['input']))}" if name else ""
    return f"{name}: {message[:1].lower()}{message[1:400]}{of}" if name else message[:400]


def short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


async def read_json(name: str, text: str | None) -> Any:
    """The value of an option that is JSON; None where it was not given. BadInput for what is no JSON, TooLarge."""
    if text is None:
        return None
    if len(text) > MAX_JSON:
        raise TooLarge(f"{name} has {len(text)} characters; at most {MAX_JSON} are read")
    return await asyncio.to_thread(_loads, name, text) if len(text) > 64_000 else _loads(name, text)


def _loads(name: str, text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{name} is not JSON: {error.msg} at character {error.pos}") from None
