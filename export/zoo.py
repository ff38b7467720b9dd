"""The networks Ekiben exports by name: one literal row each, readable without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from ekiben.settings import Settings
from models.artifact import Preprocess, Task
from models.onnx_import.options import read_labels

_LABELS = Path(__file__).parent / "labels"


@dataclass(frozen=True)
class ZooRow:
    """A network with published weights: their address and checksum, and the preprocessing that they expect.

    ``height``, ``width``: input of the graph in pixels; None: dynamic. ``sha256_prefix``: the whole SHA-256, or the
    part in the published file's name, which torch hub checks too. Not ``published``: address and checksum are those
    of other weights (``by_settings``). ``label_file``: empty for networks without classes.
    ``metrics``: as published, in percent.
    """

    name: str
    task: Task
    family: str
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
    published: bool = True

    @property
    def file(self) -> str:
        """The file's name."""
        return urlsplit(self.url).path.rsplit("/", 1)[1]

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names by index; empty for networks without classes."""
        return read_labels(_LABELS / self.label_file) if self.label_file else ()

    @property
    def classes(self) -> str:
        """How many classes there are, in words."""
        return f"{len(self.labels)} classes" if self.label_file else "any object"


def by_settings(row: ZooRow, settings: Settings) -> ZooRow:
    """``row`` with the address, and for weights of one's own the checksum, that EKIBEN_WEIGHTS_URL and
    EKIBEN_SAM_MODEL_URLS name."""
    if (own := settings.weights_by_name.get(row.name)) is not None:
        if own.sha256 and not own.sha256.startswith(row.sha256_prefix):
            return replace(row, url=own.url, sha256_prefix=own.sha256, published=False)
        return replace(row, url=own.url)
    return replace(row, url=f"{settings.weights_mirror}/{row.file}") if settings.weights_mirror else row


# torchvision's licence is BSD-3-Clause; its README adds that terms of the training data may apply to weights.
# No separate licence is published for either file.
_LICENCE = "BSD-3-Clause (torchvision); the terms of the training data may apply: "


def _sam(architecture: str, file: str, sha256: str, megabytes: int) -> ZooRow:
    return ZooRow(
        name=f"sam_{architecture}",
        task="masks",
        family="sam",
        architecture=architecture,
        url=f"https://dl.fbaipublicfiles.com/segment_anything/{file}",
        sha256_prefix=sha256,
        megabytes=megabytes,
        licence="Apache-2.0",
        source=f"segment-anything {architecture}, trained on SA-1B (arXiv:2304.02643)",
        preprocess=Preprocess(
            longer_side=1024, interpolation="bilinear", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
        height=1024,
        width=1024,
        label_file="",
        metrics={},
    )


ZOO: dict[str, ZooRow] = {
    "efficientnet_b0": ZooRow(
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
    "deeplabv3_resnet50": ZooRow(
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
    # The publisher gives no SHA-256 (the six digits in the files' names begin their MD5). These are the sums that
    # independent projects check, an earlier micro_sam (micro_sam/util.py) among them.
    "sam_vit_b": _sam(
        "vit_b", "sam_vit_b_01ec64.pth", "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912", 375
    ),
    "sam_vit_l": _sam(
        "vit_l", "sam_vit_l_0b3195.pth", "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622", 1250
    ),
    "sam_vit_h": _sam(
        "vit_h", "sam_vit_h_4b8939.pth", "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e", 2565
    ),
}
