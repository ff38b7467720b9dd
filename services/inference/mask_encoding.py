"""Masks as the answers have them, and the files that are made of them. Runs on a thread, but for small answers."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from ekiben.errors import TooLarge
from models.images import decode, encode_png
from models.inference_requests import AutoMaskResponse, MaskResponse
from models.masks.cut_style import CutStyle
from models.masks.cutouts import cut, place
from models.masks.polygons import to_geojson, to_polygons
from models.masks.predicted_masks import AutoMask, PromptMask
from models.masks.rendering import color_image, overlay_image, paint
from models.masks.rle import Rle, to_coco, to_png, to_uncompressed
from models.sam.graphs import Floats
from services.concurrency.cpu_executor import CheckCancelled
from services.inference.recording import NPY, NewFiles
from services.schemas.masks import AutoMaskBody, CutoutBody, MaskFormat, PromptMaskBody, PromptResult

MAX_CUT_PIXELS = 128_000_000
"""Of all cut-outs of one answer; their PNGs are held until they are stored and sent."""

_ENCODERS = {"coco": to_coco, "geojson": to_geojson, "polygons": to_polygons, "rle": to_uncompressed}


def prompt_results(
    answer: MaskResponse, format: MaskFormat, files: NewFiles, *, store: bool, check: CheckCancelled = lambda: None
) -> list[PromptResult]:
    """One entry per prompt; the masks' logits and PNGs are added to ``files``."""
    results = []
    for number, row in enumerate(answer.results):
        masks = []
        for mask in row:
            check()
            ident = None
            if mask.logits is not None:
                ident = files.add("logits", _npy(mask.logits), NPY).id
            encoded = segmentation(mask.rle, format, files, store=store)
            masks.append(PromptMaskBody(id=ident, **_fields(mask, encoded)))
        results.append(PromptResult(prompt=number, masks=masks))
    return results


def auto_masks(
    answer: AutoMaskResponse, format: MaskFormat, files: NewFiles, check: CheckCancelled, *, store: bool
) -> list[AutoMaskBody]:
    """One entry per mask; their PNGs are added to ``files``."""
    masks = []
    for mask in answer.masks:
        check()
        masks.append(auto_mask(mask, segmentation(mask.rle, format, files, store=store)))
    return masks


def auto_mask(mask: AutoMask, encoded: Any) -> AutoMaskBody:
    """One automatic mask. ``encoded``: its segmentation."""
    return AutoMaskBody(**_fields(mask, encoded), point_coords=[mask.point], crop_box=mask.crop_box)


def add_overviews(answer: AutoMaskResponse, image: bytes, files: NewFiles, check: CheckCancelled) -> dict[str, str]:
    """Add images of all masks in colours, alone and over the photo, to ``files``; their ids by kind."""
    masks = [mask.rle for mask in answer.masks]
    painted = paint(masks, answer.image.height, answer.image.width, check)
    color = color_image(painted, len(masks))
    ids = {"color": files.add("color", encode_png(color)).id}
    check()
    overlay = overlay_image(painted, color, decode(image).rgb)
    return {**ids, "overlay": files.add("overlay", encode_png(overlay)).id}


def cut_out(
    image: bytes,
    objects: Sequence[tuple[int | None, PromptMask | AutoMask]],
    style: CutStyle,
    files: NewFiles,
    check: CheckCancelled,
    *,
    store: bool,
) -> tuple[list[CutoutBody], list[bytes]]:
    """The cut-outs in order, and their PNGs, which are added to ``files`` where they are to be stored.

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
    cutouts: list[CutoutBody] = []
    pngs: list[bytes] = []
    for (prompt, mask), (x0, y0, x1, y1) in zip(objects, boxes, strict=True):
        check()
        png = encode_png(cut(rgb, mask.rle, style))
        ident = files.add("cutout", png).id if store else None
        cutouts.append(
            CutoutBody(
                id=ident,
                url=f"/v1/artifacts/{ident}" if store else None,
                prompt=prompt,
                bbox=(x0, y0, x1 - x0, y1 - y0),
                width=x1 - x0,
                height=y1 - y0,
                area=mask.rle.area,
                predicted_iou=mask.predicted_iou,
                stability_score=mask.stability_score,
            )
        )
        pngs.append(png)
    return cutouts, pngs


def segmentation(rle: Rle, format: MaskFormat, files: NewFiles, *, store: bool) -> Any:
    """JSON-ready. A PNG is added to ``files`` and named by its URL; without ``store`` it is a data: URL."""
    if format != "png":
        return _ENCODERS[format](rle)
    data = to_png(rle)
    if not store:
        return "data:image/png;base64," + base64.b64encode(data).decode()
    return f"/v1/artifacts/{files.add('mask', data).id}"


def _fields(mask: PromptMask | AutoMask, encoded: Any) -> dict[str, Any]:
    return {
        "segmentation": encoded,
        "predicted_iou": mask.predicted_iou,
        "stability_score": mask.stability_score,
        "area": mask.rle.area,
        "bbox": mask.rle.bbox_xywh,
    }


def _npy(logits: Floats) -> bytes:
    out = io.BytesIO()
    np.save(out, logits.astype("<f4", copy=False), allow_pickle=False)
    return out.getvalue()
