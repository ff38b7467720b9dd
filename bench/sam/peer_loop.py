"""A peer without a server: a process that answers each line of JSON with another, which has the time."""

from __future__ import annotations

import json
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

Mask = NDArray[np.bool_]
Scored = tuple[Mask, float]
"""A mask [H, W] and its predicted IoU."""

THREADS = 2


class Peer(ABC):
    """What a user of the peer would have written. Images are files; the one that was seen last is kept."""

    image: Path | None = None

    @abstractmethod
    def see(self, image: Path) -> None:
        """Read and encode an image."""

    @abstractmethod
    def point(self, x: float, y: float) -> Scored:
        """The one mask of a click."""

    @abstractmethod
    def boxes(self, boxes: list[list[float]]) -> list[Scored]:
        """The one mask of each box (x0, y0, x1, y1)."""

    @abstractmethod
    def automatic(self, image: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Masks of everything; ``options`` and the records' keys are the generator's."""

    def note(self) -> str:
        """For the report."""
        return ""


def main(make: Any) -> None:
    """Serve standard input. ``make(folder)`` gives the peer; a call's time ends with the mask as an array."""
    peer: Peer = make(Path(sys.argv[1]))
    _write({"note": peer.note()})
    for line in sys.stdin:
        request = json.loads(line)
        start = time.perf_counter()
        answer, encoded = _answer(peer, request)
        seconds = time.perf_counter() - start
        _write({"seconds": seconds, "encode_s": encoded, "masks": [_record(one) for one in answer]})


def _answer(peer: Peer, request: dict[str, Any]) -> tuple[list[Any], float]:
    image, start, encoded = Path(request["image"]), time.perf_counter(), 0.0
    if request["do"] == "automatic":
        peer.image = None
        return peer.automatic(image, request["options"]), encoded
    if peer.image != image:
        peer.see(image)
        peer.image = image
        encoded = time.perf_counter() - start
    if request["do"] == "point":
        return [peer.point(*request["point"])], encoded
    return list(peer.boxes(request["boxes"])), encoded


def _record(one: Any) -> dict[str, Any]:
    """What the bench compares, made when the clock has stopped: COCO run lengths and scores."""
    if isinstance(one, dict):
        mask, scores = one["segmentation"], {name: float(one[name]) for name in ("predicted_iou", "stability_score")}
    else:
        mask, scores = one[0], {"predicted_iou": float(one[1])}
    encoded = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"segmentation": {**encoded, "counts": encoded["counts"].decode("ascii")}, **scores}


def _write(answer: dict[str, Any]) -> None:
    print(json.dumps(answer), flush=True)
