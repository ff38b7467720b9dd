"""The models that are meant when a request names none."""

from __future__ import annotations

CLASSIFY = "efficientnet_b0"
SEGMENT = ("deeplabv3_resnet50", "nuclei_unet")
"""In order of preference: the first that has a version."""
MASKS = "sam_vit_b"
