"""The operations on one image: what they ask, and how the answer is read."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Unpack

import numpy as np
from PIL import Image

from ekiben._client.decoding import read
from ekiben._client.image_inputs import File, ImageLike, image_file, is_medical, open_image
from ekiben._client.masks import AutoMask, AutoMasks, Cutouts, DroppedMask, FoundMask, Mask, Masks, Progress
from ekiben._client.operations import (
    AUTO_TIMEOUT_S,
    AutoOptions,
    Prompt,
    artifact_request,
    cut_from_zip,
    operation_request,
    prompts_of,
    rendered_request,
    source_of,
)
from ekiben._client.requests import ClientRequest, Steps, given
from ekiben._client.results import Classification, Segmentation


def classify(
    image: ImageLike | None = None,
    *,
    model: str | None = None,
    version: int | None = None,
    top_k: int | None = None,
    store: bool | None = None,
    image_id: str | None = None,
    timeout_s: float | None = None,
) -> Steps[Classification]:
    """The best classes of an image, highest confidence first.

    ``image``: a path, bytes, a file, a PIL image or a uint8 array [H, W, 3] or [H, W]; or ``image_id`` of a stored
    one. ``top_k``: 5 by default. ``store=False`` keeps nothing on the server.
    """
    options = given(model=model, version=version, top_k=top_k, store=store)
    reply = yield operation_request("classify", source_of(image, image_id), options, timeout_s=timeout_s)
    return read(Classification, reply)


def segment(
    image: ImageLike | None = None,
    *,
    model: str | None = None,
    version: int | None = None,
    flips: bool | None = None,
    probability: bool | None = None,
    store: bool | None = None,
    image_id: str | None = None,
    class_map: bool = True,
    timeout_s: float | None = None,
) -> Steps[Segmentation]:
    """The class of every pixel: ``.classes``, and ``.class_map`` uint8 [H, W] unless ``class_map=False``.

    ``flips``: average over mirror images; ``probability``: store that of class 1 too; both of U-Nets. A volume (NIfTI,
    DICOM of several frames) has no class map: see ``segment_volume``.
    """
    options = given(model=model, version=version, flips=flips, probability=probability, store=store)
    source = source_of(image, image_id)
    requested = operation_request("segment", source, options, timeout_s=timeout_s)
    drawn = class_map and not (isinstance(source, File) and is_medical(source))
    if drawn and requested.rpc is not None:
        requested = replace(requested, rpc=replace(requested.rpc, body={**requested.rpc.body, "render": "mask"}))
    if drawn and store is False:  # else it is stored, and fetched from there
        requested = replace(requested, fields={**(requested.fields or {}), "render": "mask"})
    reply = yield requested
    return (yield from read_segmentation(reply, class_map))


def read_segmentation(reply: dict[str, Any], class_map: bool) -> Steps[Segmentation]:
    """With the class map: of the reply itself, or fetched."""
    png, kept = reply.pop("rendered", b""), reply.get("artifacts") or {}
    address = kept.get("mask", "")
    if address.startswith("data:"):
        png = png or base64.b64decode(address.partition(",")[2])
        reply["artifacts"] = None
    elif class_map and not png and address:
        png = yield artifact_request(address)
    pixels = np.asarray(open_image(png)) if png and class_map else None
    return read(Segmentation, reply, class_map=pixels)


def render(
    image: ImageLike | None = None,
    kind: Literal["overlay", "color", "mask", "probability"] = "overlay",
    *,
    model: str | None = None,
    version: int | None = None,
    flips: bool | None = None,
    store: bool | None = None,
    image_id: str | None = None,
    timeout_s: float | None = None,
) -> Steps[Image.Image]:
    """An image of the segmentation. ``overlay``: the photo, tinted; ``color``: the classes' colours; ``mask``: grey
    level = class index; ``probability``: of class 1, 16-bit grey (U-Nets of two classes)."""
    options = given(model=model, version=version, flips=flips, store=store)
    return open_image((yield rendered_request(source_of(image, image_id), kind, "image/png", options, timeout_s)))


def segment_volume(
    volume: ImageLike,
    kind: Literal["nifti", "dicom_seg"] = "nifti",
    *,
    model: str | None = None,
    version: int | None = None,
    flips: bool | None = None,
    store: bool | None = None,
    timeout_s: float | None = None,
) -> Steps[bytes]:
    """The mask of a volume in its own format: of NIfTI a ``.nii.gz`` of the same shape and affine, of DICOM a SEG."""
    mime_type = "application/gzip" if kind == "nifti" else "application/dicom"
    options = given(model=model, version=version, flips=flips, store=store)
    data: bytes = yield rendered_request(image_file(volume), kind, mime_type, options, timeout_s)
    return data


def masks(
    image: ImageLike | None = None,
    prompts: Sequence[Prompt] | None = None,
    *,
    points: Any = None,
    labels: Any = None,
    box: Any = None,
    boxes: Any = None,
    mask_input: Mask | str | None = None,
    multimask: bool | None = None,
    logits: bool | None = None,
    model: str | None = None,
    version: int | None = None,
    store: bool | None = None,
    image_id: str | None = None,
    timeout_s: float | None = None,
) -> Steps[Masks]:
    """Masks of what is pointed at: ``.results[p][m].array`` bool [H, W], ``.best`` the best of each prompt.

    One prompt: ``points`` [K, 2] (x, y; or one point) with ``labels`` [K] (1 foreground, the default; 0 background),
    ``box`` (x0, y0, x1, y1), ``mask_input`` (a mask of an earlier answer, or its id), or several of these. Many:
    ``boxes`` [N, 4], or ``prompts``, dicts. None at all: the whole image's box. Pixels of the image as a person
    sees it. ``multimask``: three masks a prompt (the default) or one. ``logits=False``: not to be refined later.
    """
    requested = prompts_of(prompts, points, labels, box, boxes, mask_input)
    options = given(model=model, version=version, prompts=requested, multimask=multimask, logits=logits, store=store)
    return read(Masks, (yield operation_request("masks", source_of(image, image_id), options, timeout_s=timeout_s)))


def auto_masks(
    image: ImageLike | None = None,
    *,
    model: str | None = None,
    version: int | None = None,
    store: bool | None = None,
    image_id: str | None = None,
    timeout_s: float = AUTO_TIMEOUT_S,
    **options: Unpack[AutoOptions],
) -> Steps[AutoMasks]:
    """Masks of everything in the image, the largest first: ``.masks[i].array`` bool [H, W].

    ``preset``: fast, full (the default) or dense; or the parameters of the reference's generator by their names.
    """
    requested = given(model=model, version=version, store=store, **options)
    return read(
        AutoMasks, (yield operation_request("auto_masks", source_of(image, image_id), requested, timeout_s=timeout_s))
    )


def cutouts(
    image: ImageLike | None = None,
    prompts: Sequence[Prompt] | None = None,
    *,
    points: Any = None,
    labels: Any = None,
    box: Any = None,
    boxes: Any = None,
    mask_input: Mask | str | None = None,
    multimask: bool | None = None,
    min_pixels: int | None = None,
    padding_px: int | None = None,
    feather_px: float | None = None,
    frame: Literal["box", "full"] | None = None,
    limit: int | None = None,
    model: str | None = None,
    version: int | None = None,
    store: bool | None = None,
    image_id: str | None = None,
    timeout_s: float = AUTO_TIMEOUT_S,
    **options: Unpack[AutoOptions],
) -> Steps[Cutouts]:
    """Objects without their background: ``.cutouts[i].image``, PIL, RGBA. Of prompts as ``masks`` takes them, or
    without any of the automatic masks.

    ``min_pixels``: smaller objects are left out; ``padding_px``: transparent border; ``feather_px``: softness of the
    edge; ``frame``: crop to the object (``box``) or keep the whole frame (``full``); ``limit``: at most so many.
    """
    requested = given(prompts=prompts_of(prompts, points, labels, box, boxes, mask_input), multimask=multimask)
    requested |= given(min_pixels=min_pixels, padding_px=padding_px, feather_px=feather_px, frame=frame, limit=limit)
    requested |= given(model=model, version=version, store=store, **options)
    request = operation_request("cutouts", source_of(image, image_id), requested, timeout_s=timeout_s)
    return read(Cutouts, (yield replace(request, headers={"Accept": "application/zip"}, read=cut_from_zip)))


def stream_request(
    image: ImageLike | None = None,
    *,
    model: str | None = None,
    version: int | None = None,
    store: bool | None = None,
    image_id: str | None = None,
    timeout_s: float = AUTO_TIMEOUT_S,
    **options: Unpack[AutoOptions],
) -> ClientRequest:
    """Automatic masks as they are found, over gRPC: FoundMask, DroppedMask, Progress, and at the end AutoMasks."""
    requested = given(model=model, version=version, store=store, **options)
    request = operation_request("auto_masks", source_of(image, image_id), requested, timeout_s=timeout_s)
    return replace(request, path="")


AutoMasksEvent = FoundMask | DroppedMask | Progress | AutoMasks


def read_event(event: dict[str, Any]) -> AutoMasksEvent:
    if (found := event["found"]) is not None:
        return FoundMask(found["number"], read(AutoMask, found["mask"]))
    if event["dropped"] is not None:
        return DroppedMask(event["dropped"]["number"])
    if event["finished"] is not None:
        return read(AutoMasks, event["finished"])
    return Progress(event["progress"] or 0.0)
