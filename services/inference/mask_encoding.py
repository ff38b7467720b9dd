"""What an answer says of its masks, and the files that it makes of them. Runs on a drawing thread."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ekiben.errors import TooLarge
from models.images import decode, encode_png
from models.inference_requests import AutoMaskResponse, MaskResponse
from models.masks.cutouts import CutStyle, cut, place
from models.masks.polygons import to_geojson, to_polygons
from models.masks.predicted_masks import AutoMask, PromptMask
from models.masks.rendering import color_image, overlay_image, paint
from models.masks.rle import Rle, to_coco, to_png, to_uncompressed
from models.sam.graphs import Floats
from services.concurrency.cpu_executor import CheckCancelled
from services.inference.recording import NPY, NewFile
from services.schemas.masks import MaskFormat

MAX_CUT_PIXELS = 128_000_000
"""Of all cut-outs of one answer; their PNGs are held until they are stored and sent."""


@dataclass(frozen=True, slots=True)
class CutOut:
    """One object's PNG. ``body``: what the answer says of it."""

    body: dict[str, Any]
    png: bytes


def results(
    answer: MaskResponse, format: MaskFormat, files: list[NewFile], *, store: bool, check: CheckCancelled = lambda: None
) -> list[dict[str, Any]]:
    """One entry per prompt; the masks' logits and PNGs are added to ``files``."""
    entries = []
    for number, row in enumerate(answer.results):
        masks = []
        for mask in row:
            check()
            ident = None
            if mask.logits is not None:
                file = NewFile("logits", _npy(mask.logits), NPY)
                files.append(file)
                ident = file.id
            masks.append({"id": ident, **_info(mask, segmentation(mask.rle, format, files, store=store))})
        entries.append({"prompt": number, "masks": masks})
    return entries


def auto_masks(
    answer: AutoMaskResponse, format: MaskFormat, files: list[NewFile], check: CheckCancelled, *, store: bool
) -> list[dict[str, Any]]:
    """One entry per mask; their PNGs are added to ``files``."""
    entries = []
    for mask in answer.masks:
        check()
        entries.append(auto_mask(mask, segmentation(mask.rle, format, files, store=store)))
    return entries


def auto_mask(mask: AutoMask, drawn: Any) -> dict[str, Any]:
    """What is said of one automatic mask. ``drawn``: its segmentation."""
    return {**_info(mask, drawn), "point_coords": [list(mask.point)], "crop_box": list(mask.crop_box)}


def auto_images(answer: AutoMaskResponse, image: bytes, check: CheckCancelled) -> list[NewFile]:
    """All masks in colours, alone and over the photo."""
    masks = [mask.rle for mask in answer.masks]
    painted = paint(masks, answer.image.height, answer.image.width, check)
    color = color_image(painted, len(masks))
    files = [NewFile("color", encode_png(color))]
    check()
    overlay = overlay_image(painted, color, decode(image).rgb)
    return [*files, NewFile("overlay", encode_png(overlay))]


def cut_all(
    image: bytes,
    objects: Sequence[tuple[int | None, PromptMask | AutoMask]],
    style: CutStyle,
    check: CheckCancelled,
    *,
    store: bool,
) -> tuple[list[CutOut], list[NewFile]]:
    """The cut-outs in order, and the same as files where they are to be stored.

    ``objects``: the number of the prompt, None for an automatic mask, and the mask. TooLarge for more than
    MAX_CUT_PIXELS.
    """
    boxes = [place(mask.rle, style) for _, mask in objects]
    if sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes) > MAX_CUT_PIXELS:
        raise TooLarge(
            f"{len(boxes)} cut-outs of this size have more than {MAX_CUT_PIXELS} pixels; ask for fewer (limit, "
            "min_pixels) or for frame=box"
        )
    rgb = decode(image).rgb
    cuts: list[CutOut] = []
    files: list[NewFile] = []
    for (prompt, mask), (x0, y0, x1, y1) in zip(objects, boxes, strict=True):
        check()
        file = NewFile("cutout", encode_png(cut(rgb, mask.rle, style)))
        body = {
            "id": file.id if store else None,
            "url": f"/v1/artifacts/{file.id}" if store else None,
            "prompt": prompt,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "width": x1 - x0,
            "height": y1 - y0,
            "area": mask.rle.area,
            "predicted_iou": mask.predicted_iou,
            "stability_score": mask.stability_score,
        }
        cuts.append(CutOut(body, file.data))
        if store:
            files.append(file)
    return cuts, files


def _info(mask: PromptMask | AutoMask, drawn: Any) -> dict[str, Any]:
    return {
        "segmentation": drawn,
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
        "area": mask.rle.area,
        "bbox": list(mask.rle.bbox_xywh),
    }


def _npy(logits: Floats) -> bytes:
    out = io.BytesIO()
    np.save(out, logits.astype("<f4", copy=False), allow_pickle=False)
    return out.getvalue()


_DRAWN = {"coco": to_coco, "geojson": to_geojson, "polygons": to_polygons, "rle": to_uncompressed}


def segmentation(rle: Rle, format: MaskFormat, files: list[NewFile], *, store: bool) -> Any:
    """JSON-ready. A PNG becomes one more of ``files`` and is named by its URL; without ``store`` it is a data: URL."""
    if format != "png":
        return _DRAWN[format](rle)
    data = to_png(rle)
    if not store:
        return "data:image/png;base64," + base64.b64encode(data).decode()
    file = NewFile("mask", data)
    files.append(file)
    return f"/v1/artifacts/{file.id}"
