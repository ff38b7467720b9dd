"""(b) The package's own ONNX export in a loop: one prompt a run, numpy around it as a careful user would write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bench.sam.peer_loop import THREADS, Peer, Scored, main

SIDE = 1024
MEAN = np.array([123.675, 116.28, 103.53], np.float32)
STD = np.array([58.395, 57.12, 57.375], np.float32)
PADDING = -1.0

Floats = NDArray[np.float32]


class OnnxLoop(Peer):
    """The encoder and the decoder of the package's export, with numpy around them."""

    def __init__(self, folder: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = THREADS
        providers = ["CPUExecutionProvider"]
        self._encoder = ort.InferenceSession(str(folder / "encoder.onnx"), options, providers=providers)
        self._decoder = ort.InferenceSession(str(folder / "decoder.onnx"), options, providers=providers)
        self._size, self._resized, self._embedding = (0, 0), (0, 0), np.zeros(0, np.float32)

    def see(self, photo: Path) -> None:
        """Read and encode an image."""
        with Image.open(photo) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
        scale = SIDE / max(image.size)
        width, height = (int(side * scale + 0.5) for side in image.size)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32)
        padded = np.zeros((1, 3, SIDE, SIDE), np.float32)
        padded[0, :, :height, :width] = ((pixels - MEAN) / STD).transpose(2, 0, 1)
        self._size, self._resized = (image.height, image.width), (height, width)
        self._embedding = self._encoder.run(None, {"pixels": padded})[0]

    def point(self, x: float, y: float) -> Scored:
        """The mask of a foreground point."""
        masks, scores = self._decode([(x, y, 1.0)])
        return masks[0] > 0, float(scores[0])

    def boxes(self, boxes: list[list[float]]) -> list[Scored]:
        """The mask of each box, one run each."""
        found = []
        for x0, y0, x1, y1 in boxes:
            masks, scores = self._decode([(x0, y0, 2.0), (x1, y1, 3.0)])
            found.append((masks[0] > 0, float(scores[0])))
        return found

    def automatic(self, photo: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
        """The generator's steps for the whole image, with its default thresholds."""
        self.see(photo)
        side = options["points_per_side"]
        centres = (np.arange(side) + 0.5) / side
        records, boxes = [], []
        for y in centres * self._size[0]:
            for x in centres * self._size[1]:
                masks, scores = self._decode([(x, y, 1.0)])
                for logits, score in zip(masks[1:], scores[1:], strict=True):
                    if not score > 0.88:
                        continue
                    inner, outer = np.count_nonzero(logits > 1), np.count_nonzero(logits > -1)
                    if not outer or inner / outer < 0.95:
                        continue
                    mask = logits > 0
                    boxes.append(_box(mask))
                    records.append({"segmentation": mask, "predicted_iou": score, "stability_score": inner / outer})
        order = _nms(np.array(boxes, np.float32), np.array([each["predicted_iou"] for each in records]), 0.7)
        return [records[index] for index in order]

    def _decode(self, points: list[tuple[float, float, float]]) -> tuple[Floats, Floats]:
        """Logits [4, H, W] at the image's size and scores [4]. Without a box there is a padding point."""
        if points[-1][2] != 3.0:
            points = [*points, (0.0, 0.0, PADDING)]
        table = np.array(points)
        coords = table[:, :2] * [self._resized[1] / self._size[1], self._resized[0] / self._size[0]]
        feeds = {
            "image_embeddings": self._embedding,
            "point_coords": coords[None].astype(np.float32),
            "point_labels": table[None, :, 2].astype(np.float32),
            "mask_input": np.zeros((1, 1, 256, 256), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(self._size, np.float32),
        }
        masks, scores = self._decoder.run(["masks", "iou_predictions"], feeds)
        return masks[0], scores[0]


def _box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])) if rows.size else (0, 0, 0, 0)


def _nms(boxes: Floats, scores: NDArray[Any], most: float) -> list[int]:
    order, kept = np.argsort(-scores, kind="stable"), []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        low, high = np.maximum(boxes[best, :2], boxes[rest, :2]), np.minimum(boxes[best, 2:], boxes[rest, 2:])
        both = np.prod(np.clip(high - low, 0, None), axis=1)
        areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            order = rest[~(both / (areas[best] + areas[rest] - both) > most)]
    return kept


if __name__ == "__main__":
    main(OnnxLoop)
