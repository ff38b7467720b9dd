"""(a) The package ``segment_anything`` on torch: its own predictor and its own automatic mask generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.sam.peer_loop import THREADS, Peer, Scored, main
from tests.reference_sam import provide_nms, read_rgb  # comes first: torchvision may need help to be imported

from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry  # isort: skip


class Package(Peer):
    """The package's predictor and generator."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(THREADS)
        self._nms = provide_nms()
        self._sam = sam_model_registry["vit_b"](checkpoint=str(folder / "weights.pth")).eval()
        self._predictor = SamPredictor(self._sam)

    def note(self) -> str:
        """Which non-maximum suppression the generator calls."""
        return f"(a) torchvision's nms, which the generator calls, is {self._nms}"

    def see(self, image: Path) -> None:
        """Read and encode an image."""
        self._predictor.set_image(read_rgb(image.read_bytes()))

    def point(self, x: float, y: float) -> Scored:
        """The mask of a foreground point."""
        masks, scores, _ = self._predictor.predict(np.array([[x, y]]), np.array([1]), multimask_output=False)
        return masks[0], float(scores[0])

    def boxes(self, boxes: list[list[float]]) -> list[Scored]:
        """All in one batch: the package's own way for several boxes."""
        predictor = self._predictor
        placed = predictor.transform.apply_boxes_torch(torch.tensor(boxes), predictor.original_size)
        masks, scores, _ = predictor.predict_torch(None, None, placed, multimask_output=False)
        return [(mask[0], float(score)) for mask, score in zip(masks.numpy(), scores, strict=True)]

    def automatic(self, image: Path, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Masks of the package's generator."""
        records: list[dict[str, Any]] = SamAutomaticMaskGenerator(self._sam, **options).generate(
            read_rgb(image.read_bytes())
        )
        return records


if __name__ == "__main__":
    main(Package)
