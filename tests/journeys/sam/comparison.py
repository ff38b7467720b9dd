"""Answers over HTTP held against the reference package's, number by number."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from export.sam.reference_package import Sam
from tests import reference_sam as reference
from tests.journeys.sam.mask_answers import pixels

MODEL = "network"

LEAST_IOU = 0.999
SMALL = 1000
"""Pixels of a mask's edge are a large share of a smaller mask: what may differ there is what MOST_LOGIT allows."""

MOST_SCORE = 1e-4
FLIPPED = 2
"""Pixels at a threshold that rounding may move across it: a stability score is a share of pixels."""
MOST_LOGIT = 1e-3
"""As a share of what a mask's logits span: both sides compute in float32, and add up in another order."""

SAME_IOU = 0.99
"""Of an automatic mask and the reference's."""


@dataclass
class Seen:
    """The worst of what was compared; ``str`` of it is what a report wants. ``off``: what is not as it must be."""

    masks: int = 0
    small: int = 0
    iou: float = 1.0
    small_iou: float = 1.0
    predicted_iou: float = 0.0
    stability: float = 0.0
    logits: float = 0.0
    off: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.masks} masks, least IoU {self.iou:.6f} ({self.small} small: {self.small_iou:.6f}), predicted IoU "
            f"off by {self.predicted_iou:.1e}, stability {self.stability:.1e}, logits {self.logits:.1e} of their span"
        )

    def add(self, what: str, area: int, iou: float, predicted_iou: float, stability: float) -> None:
        """``area``: pixels of the reference's mask; the scores: how far apart they are."""
        self.masks += 1
        self.predicted_iou = max(self.predicted_iou, predicted_iou)
        self.stability = max(self.stability, stability)
        if area < SMALL:
            self.small += 1
            self.small_iou = min(self.small_iou, iou)
        else:
            self.iou = min(self.iou, iou)
            if not iou >= LEAST_IOU:
                self.off.append(f"{what}: IoU {iou:.6f}")
        if not (predicted_iou <= MOST_SCORE and stability <= max(MOST_SCORE, FLIPPED / max(area, 1))):
            self.off.append(f"{what}: scores {predicted_iou:.1e}, {stability:.1e}")

    def add_logits(self, what: str, share: float, flipped: float) -> None:
        """``flipped``: the logit furthest from 0 of which the masks differ; both as a share of the span."""
        self.logits = max(self.logits, share)
        if not (share <= MOST_LOGIT and flipped <= MOST_LOGIT):
            self.off.append(f"{what}: logits {share:.1e}, where masks differ {flipped:.1e}")


def forms(data: bytes) -> dict[str, bytes]:
    """A photo as it is, turned by EXIF, cut to a square and to a strip of 4 : 1."""
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    left, top = (width - height) // 2, (height - width // 4) // 2
    return {
        "landscape": data,
        "portrait": jpeg(image, orientation=6),
        "square": jpeg(image.crop((left, 0, left + height, height))),
        "strip": jpeg(image.crop((0, top, width, top + width // 4))),
    }


def jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = io.BytesIO()
    image.save(out, "JPEG", quality=92, exif=exif)
    return out.getvalue()


def prompts(width: int, height: int) -> list[dict[str, Any]]:
    """A point, three points, a box, a box with points: of an image of this size."""

    def point(x: float, y: float, label: int) -> list[float]:
        return [round(x * width, 2), round(y * height, 2), label]

    box = [round(0.22 * width, 2), round(0.18 * height, 2), round(0.71 * width, 2), round(0.83 * height, 2)]
    return [
        {"points": [point(0.5, 0.5, 1)]},
        {"points": [point(0.3, 0.4, 1), point(0.6, 0.5, 1), point(0.1, 0.9, 0)]},
        {"box": box},
        {"points": [point(0.45, 0.55, 1), point(0.25, 0.25, 0)], "box": box},
    ]


def compare_prompts(client: httpx.Client, sam: Sam, data: bytes) -> Seen:
    """Every kind of prompt on one image, three masks and one, and each of them refined by an earlier mask."""
    rgb = reference.read_rgb(data)
    predictor, seen = reference.Predictor(sam, rgb), Seen()
    requested = prompts(rgb.shape[1], rgb.shape[0])
    first = _ask(client, data, requested, multimask=True)
    answers = [predictor.answer(prompt) for prompt in requested]
    _compare(client, seen, "three masks", first, answers)
    one = _ask(client, data, requested, multimask=False)
    _compare(client, seen, "one mask", one, [predictor.answer(prompt, multimask=False) for prompt in requested])
    # The server refines its own logits, the reference those that it gave. The last prompt has no mask to refine.
    refined: list[dict[str, Any]] = [{}, *requested[1:]]
    for prompt, row in zip(refined[:3], first, strict=False):
        prompt["mask_input"] = row["masks"][1]["id"]
    masks = [answer.low_res[1] for answer in answers[:3]]
    for multimask in (True, False):
        expected = [
            predictor.answer(prompt, multimask=multimask, mask_input=mask)
            for prompt, mask in zip(refined, [*masks, None], strict=True)
        ]
        _compare(client, seen, "refined", _ask(client, data, refined, multimask=multimask), expected)
    return seen


def _ask(client: httpx.Client, data: bytes, requested: Sequence[Any], *, multimask: bool) -> list[dict[str, Any]]:
    form = {"prompts": json.dumps(requested), "model": MODEL, "multimask": str(multimask).lower()}
    answer = client.post("/v1/masks", data=form, files={"file": data})
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    return results


def _compare(
    client: httpx.Client, seen: Seen, kind: str, given: Sequence[Any], expected: Sequence[reference.Answer]
) -> None:
    assert [row["prompt"] for row in given] == list(range(len(expected)))
    for row, answer in zip(given, expected, strict=True):
        assert len(row["masks"]) == len(answer.masks)
        for number, mask in enumerate(row["masks"]):
            file = client.get(f"/v1/artifacts/{mask['id']}", follow_redirects=True)
            logits = np.load(io.BytesIO(file.content), allow_pickle=False).reshape(256, 256)
            what = f"{kind}, prompt {row['prompt']}, mask {number}"
            mine, theirs = pixels(mask["segmentation"]), answer.masks[number]
            seen.add(
                what,
                int(np.count_nonzero(theirs)),
                reference.iou(mine, theirs),
                abs(mask["predicted_iou"] - float(answer.iou[number])),
                _apart(mask["stability_score"], float(answer.stability[number])),
            )
            span = float(np.ptp(answer.low_res[number]))
            flipped = np.abs(answer.logits[number][mine != theirs]).max(initial=0.0)
            seen.add_logits(what, float(np.abs(logits - answer.low_res[number]).max()) / span, float(flipped) / span)


def _apart(given: float | None, expected: float) -> float:
    """How far apart two stability scores are; the reference has NaN where Ekiben has None."""
    if given is None or np.isnan(expected):
        return 0.0 if given is None and np.isnan(expected) else np.inf
    return abs(given - expected)


def compare_automatic(client: httpx.Client, sam: Sam, data: bytes, **options: Any) -> Seen:
    """Automatic masks are the reference generator's: as many, each with one of its own, and its numbers."""
    answer = client.post("/v1/masks/auto", params={"model": MODEL, "format": "coco", **options}, files={"file": data})
    assert answer.status_code == 200, answer.text
    given = answer.json()["masks"]
    expected = reference.generate(sam, reference.read_rgb(data), **options)
    return compare_sets(given, expected)


def compare_sets(given: Sequence[Any], expected: Sequence[Any]) -> Seen:
    """Fails where masks are missing or too many; scores and IoUs of the pairs are in what it gives back."""
    pairs = reference.match(
        [one["segmentation"] for one in given], [one["segmentation"] for one in expected], least=SAME_IOU
    )
    ours, theirs = {row for row, _, _ in pairs}, {column for _, column, _ in pairs}
    extra = [_tell(one) for number, one in enumerate(given) if number not in ours]
    lost = [_tell(one) for number, one in enumerate(expected) if number not in theirs]
    assert (extra, lost) == ([], []), f"{len(given)} masks, the reference has {len(expected)}"
    seen = Seen()
    for row, column, iou in pairs:
        mine, other = given[row], expected[column]
        seen.add(
            f"mask {row}",
            other["area"],
            iou,
            abs(mine["predicted_iou"] - other["predicted_iou"]),
            abs(mine["stability_score"] - other["stability_score"]),
        )
        assert mine["point_coords"] == [pytest.approx(point, abs=1e-6) for point in other["point_coords"]]
        assert mine["crop_box"] == other["crop_box"]
        assert mine["bbox"] == pytest.approx(other["bbox"], abs=2)
    assert [one["area"] for one in given] == sorted((one["area"] for one in given), reverse=True)
    return seen


def _tell(record: Any) -> str:
    names = ("area", "bbox", "predicted_iou", "stability_score", "point_coords", "crop_box")
    return ", ".join(f"{name} {record[name]}" for name in names)
