"""Segmentation networks of torchvision: from normalised pixels to logits of every pixel."""

from __future__ import annotations

from torch import Tensor, nn

HEADS = {"deeplabv3_resnet50": "classifier.4.weight"}
"""Architecture -> the parameter whose first axis is the number of classes."""


class SegmentationNetwork(nn.Module):
    """The backbone and the main head of a torchvision segmentation network; parameters keep their published names."""

    def __init__(self, backbone: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [N, classes, H, W] for pixels float32 [N, 3, H, W]: torchvision's steps without the auxiliary head."""
        scores = self.classifier(self.backbone(pixels)["out"])
        enlarged: Tensor = nn.functional.interpolate(
            scores, size=pixels.shape[-2:], mode="bilinear", align_corners=False
        )
        return enlarged


def build(architecture: str, classes: int) -> nn.Module:
    """A newly initialised network in eval mode: pixels float32 [N, 3, H, W] to logits float32 [N, classes, H, W]."""
    from export.torchvision_ops import declare_missing

    declare_missing()
    from torchvision.models.segmentation import deeplabv3_resnet50

    networks = {"deeplabv3_resnet50": deeplabv3_resnet50}
    whole = networks[architecture](weights=None, weights_backbone=None, num_classes=classes, aux_loss=False)
    return SegmentationNetwork(whole.backbone, whole.classifier).eval()
