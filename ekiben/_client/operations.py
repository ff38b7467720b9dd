"""Builds the request of an operation from its options: form fields for HTTP, a message for gRPC."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np

from ekiben._client.image_inputs import FileSource, ImageLike, image_file
from ekiben._client.masks import Mask
from ekiben._client.requests import ClientRequest, Rpc, one_id, plain

AUTO_TIMEOUT_S = 330.0
"""Longer than the server's limit for automatic masks, EKIBEN_AUTO_TIMEOUT_S, 300 s by default."""

ROUTES = {
    "classify": ("/v1/classify", "Classify"),
    "segment": ("/v1/segment", "Segment"),
    "masks": ("/v1/masks", "PromptMasks"),
    "auto_masks": ("/v1/masks/auto", "AutoMasks"),
    "cutouts": ("/v1/cutouts", "Cutouts"),
}
"""Operation -> HTTP path, and method of the gRPC service Vision."""

Prompt = Mapping[str, Any]
"""``{"points": [[x, y, label], ...], "box": [x0, y0, x1, y1], "mask_input": id}``, with at least one of the keys."""


class AutoMaskOptions(TypedDict, total=False):
    """Options of automatic masks: names, meaning and defaults of ``SamAutomaticMaskGenerator``."""

    preset: Literal["fast", "full", "dense"] | None
    points_per_side: int
    points_per_batch: int
    pred_iou_thresh: float
    stability_score_thresh: float
    stability_score_offset: float
    box_nms_thresh: float
    crop_n_layers: int
    crop_nms_thresh: float
    crop_overlap_ratio: float
    crop_n_points_downscale_factor: int
    min_mask_region_area: int


def source_of(image: ImageLike | None, image_id: str | None) -> FileSource | str:
    """The image of a request: a file, or the id of a stored one. Raises ValueError unless exactly one is given."""
    if (image is None) == (image_id is None):
        raise ValueError("give an image, or image_id of a stored one")
    return image_file(image) if image is not None else one_id(image_id)


def operation_request(
    operation: str, source: FileSource | str, options: Mapping[str, Any], *, timeout_s: float | None = None
) -> ClientRequest:
    """The request of an operation. ``source``: an image, or the id of a stored one."""
    path, method = ROUTES[operation]
    gather = _finished if operation == "auto_masks" else None
    return ClientRequest(
        "POST",
        path,
        fields=form_fields(source, options),
        files=(("file", source),) if isinstance(source, FileSource) else (),
        rpc=Rpc("Vision", method, message(source, options), gather),
        timeout_s=timeout_s,
    )


def range_text(value_range: tuple[float, float] | None) -> str | None:
    """The option ``range`` as it is sent."""
    return None if value_range is None else ",".join(f"{value:.12g}" for value in value_range)


def form_fields(source: FileSource | str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The form fields of an operation; a file is sent beside them."""
    return {**options, "image_id": source} if isinstance(source, str) else dict(options)


def message(source: FileSource | str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an operation's gRPC message."""
    image = {"image_id": source} if isinstance(source, str) else {"data": source, "filename": source.name}
    body = {**options, "image": image}
    if "prompts" in body:
        body["prompts"] = [_prompt_message(one) for one in body["prompts"]]
    return body


def rendered_request(
    source: FileSource | str, kind: str, mime_type: str, options: Mapping[str, Any], timeout_s: float | None
) -> ClientRequest:
    """The request for a rendered segmentation; its reply is the bytes of the file."""
    options = {**options, "render": kind}
    return ClientRequest(
        "POST",
        "/v1/segment",
        fields=form_fields(source, options),
        files=(("file", source),) if isinstance(source, FileSource) else (),
        headers={"Accept": mime_type},
        read=bytes,
        rpc=Rpc("Vision", "Segment", message(source, options), _rendered),
        timeout_s=timeout_s,
    )


def artifact_request(artifact: Any) -> ClientRequest:
    """The request for the bytes of a stored file, by its Artifact, id or URL."""
    ident = one_id(artifact)
    rpc = Rpc("Artifacts", "GetArtifact", {"id": ident}, _joined)
    return ClientRequest("GET", f"/v1/artifacts/{ident}", read=bytes, rpc=rpc, repeatable=True)


def prompts_of(
    prompts: Sequence[Prompt] | None = None,
    points: Any = None,
    labels: Any = None,
    box: Any = None,
    boxes: Any = None,
    mask_input: Mask | str | None = None,
) -> list[dict[str, Any]] | None:
    """The prompts as in the JSON of a request, None for no prompt.

    Raises ValueError for arguments that exclude each other.
    """
    single = {"points": points, "labels": labels, "box": box, "mask_input": mask_input}
    one = any(value is not None for value in single.values())
    if (prompts is not None) + (boxes is not None) + one > 1:
        raise ValueError("give prompts, or boxes, or one prompt's points, labels, box and mask_input")
    if prompts is not None:
        return [_prompt(each) for each in prompts]
    if boxes is not None:
        return [{"box": corners} for corners in _rows(boxes, 4, "boxes")]
    if not one:
        return None
    prompt: dict[str, Any] = {}
    if points is not None:
        rows = _rows(points, 2, "points")
        marks = [1] * len(rows) if labels is None else np.asarray(labels).reshape(-1).tolist()
        if len(marks) != len(rows):
            raise ValueError(f"there are {len(rows)} points and {len(marks)} labels")
        prompt["points"] = [[x, y, int(mark)] for (x, y), mark in zip(rows, marks, strict=True)]
    elif labels is not None:
        raise ValueError("labels belong to points")
    if box is not None:
        prompt["box"] = _rows(box, 4, "box")[0]
    if mask_input is not None:
        prompt["mask_input"] = one_id(mask_input)
    return [prompt]


def _prompt(given: Prompt) -> dict[str, Any]:
    prompt: dict[str, Any] = plain(dict(given))
    if prompt.get("mask_input") is not None:
        prompt["mask_input"] = one_id(prompt["mask_input"])
    return {name: value for name, value in prompt.items() if value is not None}


def _rows(values: Any, length: int, name: str) -> list[list[float]]:
    """``values`` as a list of N rows of ``length`` numbers; a single row gives N = 1. Raises ValueError."""
    array = np.asarray(values)
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2 or array.shape[1] != length or array.dtype.kind not in "iuf":
        raise ValueError(f"{name} has rows of {length} numbers; this has the shape {list(array.shape)}")
    rows: list[list[float]] = array.tolist()
    return rows


def _prompt_message(prompt: Mapping[str, Any]) -> dict[str, Any]:
    body = dict(prompt)
    if "points" in body:
        body["points"] = [{"x": x, "y": y, "label": label} for x, y, label in body["points"]]
    if "box" in body:
        body["box"] = dict(zip(("x0", "y0", "x1", "y1"), body["box"], strict=True))
    return body


def _rendered(reply: dict[str, Any]) -> bytes:
    data: bytes = reply["rendered"]
    return data


def _joined(chunks: list[dict[str, Any]]) -> bytes:
    return b"".join(chunk["data"] for chunk in chunks)


def _finished(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The result in the last of the events of automatic masks."""
    answer: dict[str, Any] = events[-1]["finished"] if events else {}
    return answer


def cut_from_zip(data: bytes) -> dict[str, Any]:
    """The result of a request for cut-outs, with their PNGs, from the ZIP. Raises ValueError for other data."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            body: dict[str, Any] = json.loads(archive.read("cutouts.json"))
            for number, cut in enumerate(body["cutouts"]):
                cut["png"] = archive.read(f"cutout-{number:03d}.png")
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"it is no archive of cut-outs: {error}") from None
    return body
