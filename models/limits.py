"""Bounds of what is read: bytes, pixels and parts of an image or a volume."""

from __future__ import annotations

from typing import Final

MAX_IMAGE_BYTES: Final = 50 * 1024 * 1024
"""Of an encoded image."""

MAX_PIXELS: Final = 64_000_000
"""Of a decoded image, and of one slice of a volume."""

MAX_VOLUME_BYTES: Final = 2 * 1024**3
"""Of a volume's file, and of its values when they are unpacked."""

MAX_JPEG_SCANS: Final = 128
"""A progressive JPEG repeats work over all its pixels in each scan, and 95 bytes are enough for one scan. Files of
cameras have about ten, and a thumbnail or two inside them."""
