"""Messages of ekiben.v1 and the JSON of /v1: options out of requests, responses out of bodies.

Names and defaults are those of the JSON, so a body becomes a message field by field; only what protobuf words
otherwise (nested lists, a choice of forms) is told here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import orjson
from google.protobuf.message import Message

from ekiben.errors import BadInput
from models.masks.predicted_masks import MaskUpdate
from models.masks.rle import to_uncompressed
from models.sam.prompts import MAX_POINTS_IN_ALL, MAX_PROMPTS
from services.inference import mask_encoding
from services.inference.pipeline import ImageSource

_APART = frozenset({"image", "prompts"})


def options(request: Message) -> dict[str, Any]:
    """What the caller has set, by name; image and prompts are read apart."""
    return {
        field.name: getattr(request, field.name)
        for field in request.DESCRIPTOR.fields
        if field.name not in _APART and field.has_presence and request.HasField(field.name)
    }


def source(request: Any, timeout_s: float | None) -> ImageSource:
    """The image that is asked about."""
    image = request.image
    which = image.WhichOneof("source")
    return ImageSource(
        data=image.data or None,  # no bytes are no image, as an empty body is none
        filename=image.filename or None,
        image_id=image.image_id if which == "image_id" else None,
        timeout_s=timeout_s,
    )


def prompts(request: Any) -> list[dict[str, Any]] | None:
    """As JSON has them; None where there are none."""
    if not request.prompts:
        return None
    if len(request.prompts) > MAX_PROMPTS or sum(len(one.points) for one in request.prompts) > MAX_POINTS_IN_ALL:
        raise BadInput(f"at most {MAX_PROMPTS} prompts and {MAX_POINTS_IN_ALL} points are taken at once")
    return [_prompt(one) for one in request.prompts]


def jsonable(body: Any) -> Any:
    """What the JSON answer would hold: times as text."""
    return orjson.loads(orjson.dumps(body, option=orjson.OPT_UTC_Z))


def masks(body: Mapping[str, Any], format: str) -> dict[str, Any]:
    """A MasksBody, its segmentations and points as messages have them."""
    results = [
        {**row, "masks": [{**one, "segmentation": _segmentation(one["segmentation"], format)} for one in row["masks"]]}
        for row in body["results"]
    ]
    return {**body, "results": results}


def auto_masks(body: Mapping[str, Any], format: str) -> dict[str, Any]:
    """An AutoMasksBody likewise."""
    return {**body, "masks": [auto_mask(one, format) for one in body["masks"]]}


def auto_mask(body: Mapping[str, Any], format: str) -> dict[str, Any]:
    points = [{"x": x, "y": y} for x, y in body["point_coords"]]
    return {**body, "segmentation": _segmentation(body["segmentation"], format), "point_coords": points}


def mask_update_events(mask_update_events: MaskUpdate) -> Iterator[dict[str, Any]]:
    """The events of an AutoMasks stream: what was dropped first, for something better is found."""
    for number in mask_update_events.dropped:
        yield {"dropped": {"number": number}}
    for number, mask in mask_update_events.found:
        body = mask_encoding.auto_mask(mask, to_uncompressed(mask.rle))
        yield {"found": {"number": number, "mask": auto_mask(body, "rle")}}
    yield {"progress": mask_update_events.progress}


def _segmentation(drawn: Any, format: str) -> dict[str, Any]:
    if format == "polygons":
        parts = [{**part, "holes": [{"coordinates": hole} for hole in part["holes"]]} for part in drawn]
        return {"polygons": {"polygons": parts}}
    return {format: drawn}


def _prompt(prompt: Any) -> dict[str, Any]:
    one: dict[str, Any] = {}
    if prompt.points:
        one["points"] = [[point.x, point.y, point.label] for point in prompt.points]
    if prompt.HasField("box"):
        one["box"] = [prompt.box.x0, prompt.box.y0, prompt.box.x1, prompt.box.y1]
    if prompt.mask_input:
        one["mask_input"] = prompt.mask_input
    return one
