"""Converts messages of ekiben.v1 to the options and bodies of /v1, and back.

Names and defaults are those of the JSON, so a body becomes a message field by field; only fields that protobuf has to
represent differently (nested lists, oneof) are converted here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import orjson
from google.protobuf.message import Message

from ekiben.errors import BadInput
from models.masks.predicted_masks import MaskUpdate
from models.masks.rle import to_uncompressed
from models.sam.prompts import MAX_POINTS_IN_ALL, MAX_PROMPTS
from services.inference import mask_encoding
from services.inference.context import Outcome
from services.inference.pipeline import ImageSource
from services.schemas.body import Body, to_dict
from services.schemas.inference import SegmentBody, SegmentOptions
from services.schemas.masks import AutoMasksBody, AutoMasksOptions, CutoutsBody, MasksBody, MasksOptions

_NO_OPTIONS = frozenset({"image", "prompts"})


def options(request: Message) -> dict[str, Any]:
    """The options that the caller has set, by name, without the image (see ``source``).

    BadInput for too many prompts.
    """
    given = {
        field.name: getattr(request, field.name)
        for field in request.DESCRIPTOR.fields
        if field.name not in _NO_OPTIONS and field.has_presence and request.HasField(field.name)
    }
    if "prompts" in request.DESCRIPTOR.fields_by_name and (read := prompts(request)) is not None:
        given["prompts"] = read
    return given


def source(request: Any) -> ImageSource:
    """The image of a request."""
    image = request.image
    which = image.WhichOneof("source")
    return ImageSource(
        data=image.data or None,  # empty bytes count as no image, as an empty HTTP body does
        filename=image.filename or None,
        image_id=image.image_id if which == "image_id" else None,
    )


def prompts(request: Any) -> list[dict[str, Any]] | None:
    """The prompts as in JSON; None where there are none. BadInput for too many."""
    if not request.prompts:
        return None
    if len(request.prompts) > MAX_PROMPTS or sum(len(one.points) for one in request.prompts) > MAX_POINTS_IN_ALL:
        raise BadInput(f"at most {MAX_PROMPTS} prompts and {MAX_POINTS_IN_ALL} points are taken at once")
    return [_prompt(one) for one in request.prompts]


def response_fields(outcome: Outcome[Any], options: Any) -> dict[str, Any]:
    """The fields of the response message: those of the JSON response, some of them converted (_CONVERTERS)."""
    body = outcome.body
    fields: dict[str, Any] = to_dict(body)
    convert = _CONVERTERS.get(type(body))
    return fields if convert is None else {**fields, **convert(fields, outcome, options)}


def jsonable(body: Any) -> Any:
    """A ``Body``, or JSON values, as plain JSON values: moments become text."""
    return orjson.loads(orjson.dumps(to_dict(body), option=orjson.OPT_UTC_Z))


def _segment(fields: Mapping[str, Any], outcome: Outcome[Any], options: SegmentOptions) -> dict[str, Any]:
    # An image that is not stored has no URL: its bytes are in ``rendered``.
    rendered = outcome.images[options.render] if options.render is not None else b""
    return {"artifacts": fields["artifacts"] if fields["id"] else None, "rendered": rendered}


def _prompt_masks(fields: Mapping[str, Any], _outcome: Outcome[Any], options: MasksOptions) -> dict[str, Any]:
    def mask(one: Mapping[str, Any]) -> dict[str, Any]:
        return {**one, "segmentation": _segmentation(one["segmentation"], options.format)}

    return {"results": [{**row, "masks": [mask(one) for one in row["masks"]]} for row in fields["results"]]}


def _auto_masks(fields: Mapping[str, Any], _outcome: Outcome[Any], options: AutoMasksOptions) -> dict[str, Any]:
    return {"masks": [_auto_mask(one, options.format) for one in fields["masks"]]}


def _cutouts(fields: Mapping[str, Any], outcome: Outcome[Any], _options: Any) -> dict[str, Any]:
    pngs = outcome.images.values()
    return {"cutouts": [{**one, "png": png} for one, png in zip(fields["cutouts"], pngs, strict=True)]}


_CONVERTERS: dict[type[Body], Callable[[Mapping[str, Any], Outcome[Any], Any], dict[str, Any]]] = {
    SegmentBody: _segment,
    MasksBody: _prompt_masks,
    AutoMasksBody: _auto_masks,
    CutoutsBody: _cutouts,
}
"""By type of response body, the function that converts its nested lists, oneofs and bytes."""


def _auto_mask(fields: Mapping[str, Any], format: str) -> dict[str, Any]:
    points = [{"x": x, "y": y} for x, y in fields["point_coords"]]
    return {**fields, "segmentation": _segmentation(fields["segmentation"], format), "point_coords": points}


def mask_update_events(update: MaskUpdate) -> Iterator[dict[str, Any]]:
    """The events of an AutoMasks stream: dropped masks first, because better ones replace them."""
    for number in update.dropped:
        yield {"dropped": {"number": number}}
    for number, mask in update.found:
        fields = to_dict(mask_encoding.auto_mask(mask, to_uncompressed(mask.rle)))
        yield {"found": {"number": number, "mask": _auto_mask(fields, "rle")}}
    yield {"progress": update.progress}


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
