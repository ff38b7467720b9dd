"""Requests and responses of the operations of Segment Anything."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from models.masks.cut_style import CutStyle
from models.sam.auto_options import AutoOptions
from services.schemas import default_models
from services.schemas.body import EXAMPLE_ID, Body, ImageRef, ModelRef, TimingBody
from services.schemas.inference import InferenceOptions
from services.schemas.validation import NAME, JsonText


class EmbeddingBody(Body):
    """The image embedding, which is computed once per image and takes most of the time."""

    cached: bool = Field(description="It was cached: neither was the image decoded nor did the encoder run.")
    encode_ms: float = Field(
        description="Milliseconds that the encoder took, for this request or an earlier one.", examples=[3900.0]
    )


_RLE = {"size": [534, 800], "counts": [128034, 12, 522, 14, 298618]}

Segmentation = Annotated[
    Any,
    Field(
        description="By format. rle: size [height, width] and counts, column by column; coco: these as "
        "COCO's compressed text; polygons: parts with outer ring and holes, flat lists x0, y0, x1, ... on pixel edges; "
        "geojson: a MultiPolygon or Polygon; png: URL of a 1-bit image (a data: URL when nothing is stored).",
        examples=[_RLE],
    ),
]
_BBOX = Field(description="x, y, width, height; width is the last column minus the first, as in the reference.")


class MaskFacts(Body):
    """A mask and its measures."""

    segmentation: Segmentation
    predicted_iou: float = Field(description="The network's own guess of its IoU; may exceed 1.", examples=[0.98])
    stability_score: float | None = Field(
        description="IoU of the mask at logits shifted up and down (by 1, or stability_score_offset); null when empty.",
        examples=[0.97],
    )
    area: int = Field(description="Pixels.", examples=[18422])
    bbox: tuple[int, int, int, int] = _BBOX


class PromptMaskBody(MaskFacts):
    """A mask of a prompt."""

    id: str | None = Field(
        description="For mask_input of a next prompt. null when its logits were not stored.", examples=[EXAMPLE_ID]
    )


class PromptResult(Body):
    """The masks of one prompt."""

    prompt: int = Field(description="Number of the prompt in the request, from 0.", examples=[0])
    masks: list[PromptMaskBody]


class MasksBody(Body):
    """The masks of each prompt: three (whole, part, part of a part) or one, in the reference's order."""

    id: str | None = Field(description="The prediction's id; None when nothing was stored.", examples=[EXAMPLE_ID])
    model: ModelRef
    image: ImageRef
    results: list[PromptResult]
    embedding: EmbeddingBody
    timing: TimingBody


class AutoMaskBody(MaskFacts):
    """An automatic mask."""

    point_coords: list[tuple[float, float]] = Field(description="The grid point that prompted it: x, y.")
    crop_box: tuple[int, int, int, int] = Field(description="x, y, width, height of the crop it was found in.")


class AutoArtifacts(Body):
    """URLs: every mask in a colour of its own; these colours over the photo."""

    color: str = Field(examples=[f"/v1/artifacts/{EXAMPLE_ID}"])
    overlay: str = Field(examples=[f"/v1/artifacts/{EXAMPLE_ID}"])


class AutoMasksBody(Body):
    """The masks of everything, the largest first. They may overlap: wholes and their parts."""

    id: str | None = Field(description="The prediction's id; None when nothing was stored.", examples=[EXAMPLE_ID])
    model: ModelRef
    image: ImageRef
    masks: list[AutoMaskBody]
    parameters: dict[str, Any] = Field(description="As they were used, presets and defaults filled in.")
    artifacts: AutoArtifacts | None = Field(description="None when nothing was stored.")
    embedding: EmbeddingBody
    timing: TimingBody


class CutoutBody(Body):
    """One object that was cut out."""

    id: str | None = Field(description="The artifact's id; None when nothing was stored.", examples=[EXAMPLE_ID])
    url: str | None = Field(examples=[f"/v1/artifacts/{EXAMPLE_ID}"])
    prompt: int | None = Field(description="Number of the prompt; null for an automatic mask.", examples=[0])
    bbox: tuple[int, int, int, int] = Field(description="x, y, width, height of the cut-out in the image.")
    width: int = Field(examples=[212])
    height: int = Field(examples=[190])
    area: int = Field(description="Pixels of the object.", examples=[18422])
    predicted_iou: float = Field(examples=[0.98])
    stability_score: float | None = Field(examples=[0.97])


class CutoutsBody(Body):
    """Objects as RGBA PNGs: the order of the prompts, or the largest automatic mask first."""

    id: str | None = Field(description="The prediction's id; None when nothing was stored.", examples=[EXAMPLE_ID])
    model: ModelRef
    image: ImageRef
    cutouts: list[CutoutBody]
    embedding: EmbeddingBody
    timing: TimingBody


MaskFormat = Literal["rle", "coco", "polygons", "geojson", "png"]


PROMPTS = (
    'JSON: a list of prompts, each {"points": [[x, y, label], ...], "box": [x0, y0, x1, y1], "mask_input": id}, with '
    "one of these at least; label 1 is foreground, 0 background; pixels of the image as the user sees it."
)


def _is_list(value: Any) -> Any:
    if value is not None and not isinstance(value, (list, tuple)):
        raise ValueError("it is a list of prompts")
    return value


PromptsOption = Annotated[JsonText, AfterValidator(_is_list)]
"""JSON text, or a list as in JSON; within this process also a tuple of models.sam.prompts.Prompt."""


class SamOptions(InferenceOptions):
    """The options of every operation of Segment Anything."""

    model: str | None = Field(
        default=None,
        pattern=NAME,
        description=f"A Segment Anything model. {default_models.described(default_models.MASKS)}",
    )


class MasksOptions(SamOptions):
    """The options of masks."""

    prompts: PromptsOption = Field(default=None, description=PROMPTS + " Without any: the whole image's box.")
    multimask: bool = Field(
        default=True, description="Three masks per prompt (whole, part, part of a part); false: one."
    )
    format: MaskFormat = Field(default="rle", description="What segmentation holds.")
    logits: bool = Field(
        default=True, description="false: do not keep the logits that mask_input refines (256 KB a mask); id is null."
    )


class AutoMasksOptions(SamOptions, AutoOptions):
    """The options of auto_masks."""

    format: MaskFormat = Field(default="rle", description="What segmentation holds.")

    @property
    def auto(self) -> AutoOptions:
        """The options of the automatic masks."""
        return AutoOptions(**{name: getattr(self, name) for name in AutoOptions.model_fields})


class CutoutsOptions(SamOptions, AutoOptions):
    """The options of cutouts."""

    prompts: PromptsOption = Field(default=None, description=PROMPTS + " Without any: the automatic masks.")
    multimask: bool = Field(default=False, description="true: of three masks per prompt cut the best.")
    min_pixels: int = Field(default=0, ge=0, le=64_000_000, description="Smaller objects are left out.")
    padding_px: int = Field(default=0, ge=0, le=10_000, description="Transparent pixels around the object's box.")
    feather_px: float = Field(default=0, ge=0, le=100, description="Softness of the edge; 0 is hard.")
    frame: Literal["box", "full"] = Field(
        default="box", description="Crop to the object, or keep the size of the image."
    )
    limit: int = Field(
        default=100, ge=1, le=1000, description="At most so many: the first prompts, or the largest masks."
    )

    @property
    def auto(self) -> AutoOptions:
        """The options of the automatic masks."""
        return AutoOptions(**{name: getattr(self, name) for name in AutoOptions.model_fields})

    @property
    def style(self) -> CutStyle:
        """How objects are cut out."""
        return CutStyle(self.frame, self.padding_px, self.feather_px)
