"""Limits on images and volumes: bytes, pixels and scans."""

from __future__ import annotations

from typing import Final

MAX_IMAGE_BYTES: Final = 50 * 1024 * 1024
"""Bytes of an encoded image."""

MAX_PIXELS: Final = 64_000_000
"""Pixels of a decoded image, and of one slice of a volume."""

MAX_SIDE: Final = 65_535
"""Pixels of a side of an image: what JPEG can say. Rows have a cost of their own, whatever their length."""

MAX_VOLUME_BYTES: Final = 2 * 1024**3
"""Bytes of the file of a volume, and of its unpacked values."""

MAX_JPEG_SCANS: Final = 128
"""Scans of a JPEG: each repeats work over all pixels, and 95 bytes are enough for one. Files of cameras have about ten,
and a thumbnail or two inside them."""
