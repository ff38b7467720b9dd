"""The networks Ekiben exports by name: one literal row each, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.artifact import Preprocess, Task
from models.import_options import read_labels

_LABELS = Path(__file__).parent / "labels"


@dataclass(frozen=True)
class Row:
    """A network with published weights: where they lie, and what they expect of pixels.

    ``height`` and ``width`` are the graph's input; None is dynamic. ``sha256_prefix`` is the end of the published
    file's name, which torch hub checks the same way. ``metrics`` are the publisher's own numbers, in percent.
    """

    name: str
    task: Task
    family: Literal["classifier", "segmenter"]
    architecture: str
    url: str
    sha256_prefix: str
    megabytes: int
    licence: str
    source: str
    preprocess: Preprocess
    height: int | None
    width: int | None
    label_file: str
    metrics: dict[str, float]

    @property
    def file(self) -> str:
        """Name of the published file."""
        return self.url.rsplit("/", 1)[1]

    @property
    def labels(self) -> tuple[str, ...]:
        """One name per output channel, in order."""
        return read_labels(_LABELS / self.label_file)


# torchvision's licence is BSD-3-Clause and its README adds that weights may carry terms of the data they saw;
# no separate licence is published for either file.
_LICENCE = "BSD-3-Clause (torchvision); the terms of the training data may apply: "

ZOO: dict[str, Row] = {
    "efficientnet_b0": Row(
        name="efficientnet_b0",
        task="classify",
        family="classifier",
        architecture="efficientnet_b0",
        url="https://download.pytorch.org/models/efficientnet_b0_rwightman-7f5810bc.pth",
        sha256_prefix="7f5810bc",
        megabytes=21,
        licence=_LICENCE + "ImageNet-1K",
        source="torchvision EfficientNet_B0_Weights.IMAGENET1K_V1 (arXiv:1905.11946)",
        preprocess=Preprocess(
            shorter_side=256,
            center_crop=224,
            interpolation="bicubic",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        height=224,
        width=224,
        label_file="imagenet1k.txt",
        metrics={"imagenet1k_top1": 77.692, "imagenet1k_top5": 93.532},
    ),
    "deeplabv3_resnet50": Row(
        name="deeplabv3_resnet50",
        task="segment",
        family="segmenter",
        architecture="deeplabv3_resnet50",
        url="https://download.pytorch.org/models/deeplabv3_resnet50_coco-cd0a2569.pth",
        sha256_prefix="cd0a2569",
        megabytes=168,
        licence=_LICENCE + "COCO 2017 and ImageNet-1K",
        source="torchvision DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1 (arXiv:1706.05587)",
        preprocess=Preprocess(
            shorter_side=520,
            interpolation="bilinear",
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        height=None,
        width=None,
        label_file="voc.txt",
        metrics={"coco2017_voc_miou": 66.4, "coco2017_voc_pixel_accuracy": 92.4},
    ),
}
