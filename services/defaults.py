"""The models that are meant when a request names none."""

from __future__ import annotations

CLASSIFY = "efficientnet_b0"
SEGMENT = "deeplabv3_resnet50"
MASKS = "sam_vit_b"
