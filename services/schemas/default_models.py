"""The default models, for requests that name none."""

from __future__ import annotations

CLASSIFY = "efficientnet_b0"
SEGMENT = ("deeplabv3_resnet50", "nuclei_unet")
"""In order of preference: the first that has a version."""
MASKS = "sam_vit_b"
