"""What ``segmentation`` holds, by the format that was asked for."""

from __future__ import annotations
