"""The reference: the package ``segment_anything`` on torch, asked as its users ask it; shares no code with models."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pycocotools import mask as coco

from export.torchvision_ops import declare_missing

declare_missing()

import torchvision.extension  # noqa: E402
from segment_anything import SamAutomaticMaskGenerator, SamPredictor  # noqa: E402
from segment_anything.modeling import Sam  # noqa: E402
from segment_anything.utils.amg import calculate_stability_score  # noqa: E402

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]

_own: list[torch.library.Library] = []  # a Library that is collected takes its implementation with it


def provide_nms() -> str:
    """Make ``torchvision.ops.nms`` work, which the generator calls; says whose it is.

    torchvision's own where its compiled operators load. Else the same arithmetic in torch, a row at a time: 256 boxes
    take about 2 ms of a call of seconds.
    """
    if torchvision.extension._has_ops() and not _own:
        return "torchvision's own"
    if not _own:
        library = torch.library.Library("torchvision", "IMPL", "CPU")  # type: ignore[no-untyped-call]
        library.impl("nms", _nms)  # type: ignore[no-untyped-call]
        _own.append(library)
        torchvision.extension._has_ops = lambda: True
    return "written in torch: torchvision's compiled operators do not load here"


def _nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Kept indices, highest score first: ``torchvision/csrc/ops/cpu/nms_kernel.cpp``, its inner loop at once."""
    order = scores.sort(stable=True, dim=0, descending=True).indices
    x0, y0, x1, y1 = boxes[order].unbind(1)
    areas = (x1 - x0) * (y1 - y0)
    gone = torch.zeros(len(order), dtype=torch.bool)
    kept = []
    for index in range(len(order)):
        if gone[index]:
            continue
        kept.append(index)
        wide = torch.clamp(torch.minimum(x1[index], x1[index:]) - torch.maximum(x0[index], x0[index:]), min=0)
        high = torch.clamp(torch.minimum(y1[index], y1[index:]) - torch.maximum(y0[index], y0[index:]), min=0)
        shared = wide * high
        gone[index:] |= (shared / (areas[index] + areas[index:] - shared)).double() > iou_threshold
    return order[torch.tensor(kept, dtype=torch.int64)]


def read_rgb(data: bytes) -> Pixels:
    """uint8 [H, W, 3] of an encoded image: a full Pillow decode, EXIF-turned."""
    with Image.open(io.BytesIO(data)) as opened:
        return np.array(ImageOps.exif_transpose(opened).convert("RGB"))


@dataclass(frozen=True)
class Answer:
    """What the predictor says of one prompt: ``masks`` bool [C, H, W] and the ``logits`` they are made of, ``iou`` [C],
    ``stability`` [C] (NaN of an empty mask) and ``low_res`` float32 [C, 256, 256]; C is 3 or 1."""

    masks: Mask
    logits: NDArray[np.float32]
    iou: NDArray[np.float32]
    stability: NDArray[np.float32]
    low_res: NDArray[np.float32]


class Predictor:
    """``SamPredictor`` with one image set."""

    def __init__(self, sam: Sam, rgb: Pixels) -> None:
        self._predictor = SamPredictor(sam)
        self._predictor.set_image(rgb)

    def answer(
        self, prompt: Mapping[str, Any], *, multimask: bool = True, mask_input: NDArray[np.float32] | None = None
    ) -> Answer:
        """The answer to ``points`` [[x, y, label], ..], ``box`` [x0, y0, x1, y1] or both, as HTTP takes them.

        ``mask_input``: low-resolution logits [256, 256] of an earlier answer.
        """
        points = np.array(prompt["points"], np.float64) if prompt.get("points") else None
        logits, iou, low_res = self._predictor.predict(
            point_coords=None if points is None else points[:, :2],
            point_labels=None if points is None else points[:, 2],
            box=np.array(prompt["box"], np.float64) if prompt.get("box") else None,
            mask_input=None if mask_input is None else mask_input[None],
            multimask_output=multimask,
            return_logits=True,
        )
        threshold = self._predictor.model.mask_threshold
        stability = calculate_stability_score(torch.from_numpy(logits), threshold, 1.0).numpy()
        return Answer(logits > threshold, logits, iou, stability, low_res)


def generate(sam: Sam, rgb: Pixels, **options: Any) -> list[dict[str, Any]]:
    """``SamAutomaticMaskGenerator``'s records, ``segmentation`` in COCO's form; options are its own."""
    provide_nms()
    records = SamAutomaticMaskGenerator(sam, output_mode="coco_rle", **options).generate(rgb)
    return [dict(record) for record in records]


def to_coco(mask: Mask) -> dict[str, Any]:
    """pycocotools' run lengths of bool [H, W]."""
    return dict(coco.encode(np.asfortranarray(mask, np.uint8)))


def iou(one: Mask, other: Mask) -> float:
    """Intersection over union; 1 of two empty masks."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def match(ours: Sequence[Any], theirs: Sequence[Any], *, least: float) -> list[tuple[int, int, float]]:
    """Pairs (index, index, IoU of at least ``least``) of masks in COCO's form, best first, each mask in one pair."""
    if not ours or not theirs:
        return []
    table = np.asarray(coco.iou(list(ours), list(theirs), [0] * len(theirs)))
    pairs = []
    for flat in np.argsort(-table, axis=None, kind="stable"):
        row, column = divmod(int(flat), table.shape[1])
        if table[row, column] < least:
            break
        pairs.append((row, column, float(table[row, column])))
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    chosen = []
    for row, column, value in pairs:
        if row not in used_rows and column not in used_columns:
            used_rows.add(row)
            used_columns.add(column)
            chosen.append((row, column, value))
    return chosen
