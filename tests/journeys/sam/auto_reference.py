"""The reference's automatic masks over the toy: segment_anything's own generator, fed by the twin in numpy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.toy_sam import Tokens, cells_of, image_size, iou_of, logits_of


def reference_masks(image: Image.Image, **parameters: Any) -> list[dict[str, Any]]:
    """Its records, the largest area first, with masks as bool [H, W]. Skips where the package is not installed."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("cv2")
    from export.torchvision_ops import declare_missing

    declare_missing()
    amg = pytest.importorskip("segment_anything.automatic_mask_generator")
    transforms = pytest.importorskip("segment_anything.utils.transforms")
    size, least = 1024, parameters.get("pred_iou_thresh", 0.88)

    class Predictor:
        model = SimpleNamespace(mask_threshold=0.0)
        device = "cpu"
        transform = transforms.ResizeLongestSide(size)

        def set_image(self, pixels: np.ndarray) -> None:
            self.image = Image.fromarray(np.ascontiguousarray(pixels))
            self.cells = cells_of(self.image)

        def reset_image(self) -> None:
            del self.image

        def predict_torch(self, points: Any, labels: Any, **_: Any) -> tuple[Any, Any, None]:
            """Logits at the crop's size and predicted IoUs, of masks 1 to 3."""
            pairs = zip(points.numpy(), labels.numpy(), strict=True)
            prompts = [Tokens(point.astype(np.float32), label.astype(np.float32)) for point, label in pairs]
            iou = torch.tensor(np.array([iou_of(self.cells, one)[1:] for one in prompts])).float()
            width, height = image_size(*self.image.size)
            masks = torch.zeros((len(prompts), 3, self.image.height, self.image.width))
            resize = torch.nn.functional.interpolate
            for row, one in enumerate(prompts):
                if (iou[row] > least).any():  # else its masks are dropped unseen
                    low = torch.tensor(logits_of(self.cells, one)[None, 1:]).float()
                    large = resize(low, (size, size), mode="bilinear", align_corners=False)[..., :height, :width]
                    masks[row] = resize(large, masks.shape[2:], mode="bilinear", align_corners=False)[0]
            return masks, iou, None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(amg, "SamPredictor", lambda model: Predictor())
        patch.setattr(amg, "batched_nms", _nms)  # torchvision's may not be compiled for this torch
        records = amg.SamAutomaticMaskGenerator(None, **parameters).generate(np.array(image))
    return sorted(records, key=lambda record: -record["area"])


def _nms(boxes: Any, scores: Any, categories: Any, iou_threshold: float) -> Any:
    """torchvision.ops.nms, in words of one syllable."""
    torch = pytest.importorskip("torch")
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    for one in torch.sort(scores, stable=True, descending=True).indices.tolist():
        for other in kept:
            width = (
                torch.minimum(boxes[one, 2], boxes[other, 2]) - torch.maximum(boxes[one, 0], boxes[other, 0])
            ).clamp(0)
            height = (
                torch.minimum(boxes[one, 3], boxes[other, 3]) - torch.maximum(boxes[one, 1], boxes[other, 1])
            ).clamp(0)
            both = width * height
            if both / (area[one] + area[other] - both) > iou_threshold:
                break
        else:
            kept.append(one)
    return torch.tensor(kept, dtype=torch.long)
