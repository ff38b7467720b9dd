"""The operations on one image: their requests and results."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Unpack

import numpy as np
from PIL import Image

from ekiben._client.decoding import read
from ekiben._client.image_inputs import FileSource, ImageLike, image_file, is_medical, open_image
from ekiben._client.masks import AutoMask, AutoMasks, Cutouts, DroppedMask, FoundMask, Mask, Masks, Progress
from ekiben._client.operations import (
    AUTO_TIMEOUT_S,
    AutoMaskOptions,
    Prompt,
    artifact_request,
    cut_from_zip,
    operation_request,
    prompts_of,
    range_text,
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
    range: tuple[float, float] | None = None,
    top_k: int | None = None,
    store: bool | None = None,
    image_id: str | None = None,
    timeout_s: float | None = None,
) -> Steps[Classification]:
    """The best classes of an image, highest confidence first.

    ``image``: a path, bytes, a file, a PIL image or a uint8 array [H, W, 3] or [H, W]; or ``image_id`` of a stored
    one. ``top_k``: number of classes, 5 by default. ``store=False``: the server stores nothing. ``range``: the pixel
    values that are black and white, for images of more than 8 bits; by default as the image says.
    """
    options = given(model=model, version=version, range=range_text(range), top_k=top_k, store=store)
    reply = yield operation_request("classify", source_of(image, image_id), options, timeout_s=timeout_s)
    return read(Classification, reply)


def segment(
    image: ImageLike | None = None,
    *,
    model: str | None = None,
    version: int | None = None,
    range: tuple[float, float] | None = None,
    flips: bool | None = None,
    probability: bool | None = None,
    store: bool | None = None,
    image_id: str | None = None,
    class_map: bool = True,
    timeout_s: float | None = None,
) -> Steps[Segmentation]:
    """The class of every pixel: ``.classes``, and ``.class_map`` uint8 [H, W] unless ``class_map=False``.

    ``flips``: average over mirrored images; ``probability``: store the probability of class 1 too; both for U-Nets. A
    volume (NIfTI, DICOM of several frames) has no class map: see ``segment_volume``.
    """
    options = given(
        model=model, version=version, range=range_text(range), flips=flips, probability=probability, store=store
    )
    source = source_of(image, image_id)
    request = operation_request("segment", source, options, timeout_s=timeout_s)
    with_map = class_map and not (isinstance(source, FileSource) and is_medical(source))
    if with_map and request.rpc is not None:
        request = replace(request, rpc=replace(request.rpc, body={**request.rpc.body, "render": "mask"}))
    if with_map and store is False:  # otherwise it is stored, and fetched from the store
        request = replace(request, fields={**(request.fields or {}), "render": "mask"})
    reply = yield request
    return (yield from read_segmentation(reply, class_map))


def read_segmentation(reply: dict[str, Any], class_map: bool) -> Steps[Segmentation]:
    """The result of a segmentation; with ``class_map``, the map from the reply, or fetched from the store."""
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
    range: tuple[float, float] | None = None,
    flips: bool | None = None,
    store: bool | None = None,
    image_id: str | None = None,
    timeout_s: float | None = None,
) -> Steps[Image.Image]:
    """The segmentation drawn as an image.

    ``kind``: ``overlay``, the image tinted; ``color``, the colours of the classes; ``mask``, grey level = class index;
    ``probability``, of class 1, 16-bit grey (U-Nets with two classes).
    """
    options = given(model=model, version=version, range=range_text(range), flips=flips, store=store)
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
    """The mask of a volume: for NIfTI a ``.nii.gz`` of equal shape and affine, for DICOM a DICOM SEG."""
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
    range: tuple[float, float] | None = None,
    store: bool | None = None,
    image_id: str | None = None,
    timeout_s: float | None = None,
) -> Steps[Masks]:
    """Masks of prompts: ``.results[p][m].array`` bool [H, W], ``.best`` the best of each prompt.

    One prompt: ``points`` [K, 2] (x, y; or one point) with ``labels`` [K] (1 foreground, the default; 0 background),
    ``box`` (x0, y0, x1, y1), ``mask_input`` (a mask of an earlier result, or its id), or several of these. Many:
    ``boxes`` [N, 4], or ``prompts``, dicts. None: the box of the whole image. Coordinates are pixels of the EXIF-turned
    image. ``multimask``: three masks per prompt (the default) or one. ``logits=False``: no logits are stored, so that
    the masks cannot be a ``mask_input`` later.
    """
    given_prompts = prompts_of(prompts, points, labels, box, boxes, mask_input)
    options = given(
        model=model,
        version=version,
        range=range_text(range),
        prompts=given_prompts,
        multimask=multimask,
        logits=logits,
        store=store,
    )
    return read(Masks, (yield operation_request("masks", source_of(image, image_id), options, timeout_s=timeout_s)))


def auto_masks(
    image: ImageLike | None = None,
    *,
    model: str | None = None,
    version: int | None = None,
    range: tuple[float, float] | None = None,
    store: bool | None = None,
    image_id: str | None = None,
    timeout_s: float = AUTO_TIMEOUT_S,
    **options: Unpack[AutoMaskOptions],
) -> Steps[AutoMasks]:
    """Masks of all objects in the image, the largest first: ``.masks[i].array`` bool [H, W].

    ``preset``: fast, full (the default) or dense. Other options: the parameters of ``SamAutomaticMaskGenerator``.
    """
    fields = given(model=model, version=version, range=range_text(range), store=store, **options)
    return read(
        AutoMasks, (yield operation_request("auto_masks", source_of(image, image_id), fields, timeout_s=timeout_s))
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
    range: tuple[float, float] | None = None,
    store: bool | None = None,
    image_id: str | None = None,
    timeout_s: float = AUTO_TIMEOUT_S,
    **options: Unpack[AutoMaskOptions],
) -> Steps[Cutouts]:
    """Objects without their background: ``.cutouts[i].image``, PIL, RGBA.

    Of the prompts, given as for ``masks``; without prompts of the automatic masks.

    ``min_pixels``: smaller objects are left out; ``padding_px``: width of the transparent border; ``feather_px``: width
    of the soft edge; ``frame``: crop to the object (``box``) or keep the size of the image (``full``); ``limit``:
    largest number of cut-outs.
    """
    fields = given(prompts=prompts_of(prompts, points, labels, box, boxes, mask_input), multimask=multimask)
    fields |= given(min_pixels=min_pixels, padding_px=padding_px, feather_px=feather_px, frame=frame, limit=limit)
    fields |= given(model=model, version=version, range=range_text(range), store=store, **options)
    request = operation_request("cutouts", source_of(image, image_id), fields, timeout_s=timeout_s)
    return read(Cutouts, (yield replace(request, headers={"Accept": "application/zip"}, read=cut_from_zip)))


def stream_request(
    image: ImageLike | None = None,
    *,
    model: str | None = None,
    version: int | None = None,
    range: tuple[float, float] | None = None,
    store: bool | None = None,
    image_id: str | None = None,
    timeout_s: float = AUTO_TIMEOUT_S,
    **options: Unpack[AutoMaskOptions],
) -> ClientRequest:
    """Automatic masks as they are found: FoundMask, DroppedMask, Progress, and at the end AutoMasks. Over gRPC."""
    fields = given(model=model, version=version, range=range_text(range), store=store, **options)
    request = operation_request("auto_masks", source_of(image, image_id), fields, timeout_s=timeout_s)
    return replace(request, path="")


AutoMasksEvent = FoundMask | DroppedMask | Progress | AutoMasks


def read_event(event: dict[str, Any]) -> AutoMasksEvent:
    """An event of automatic masks from its message."""
    if (found := event["found"]) is not None:
        return FoundMask(found["number"], read(AutoMask, found["mask"]))
    if event["dropped"] is not None:
        return DroppedMask(event["dropped"]["number"])
    if event["finished"] is not None:
        return read(AutoMasks, event["finished"])
    return Progress(event["progress"] or 0.0)
