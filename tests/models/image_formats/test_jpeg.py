"""JPEG files with what cameras put around the image, and files that end too early."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ekiben.errors import BadImage
from models.images import decode

NOISE = np.random.default_rng(2).integers(0, 256, (64, 96, 3), np.uint8)


def jpeg(**options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(NOISE).save(out, "JPEG", quality=90, **options)
    return out.getvalue()


PLAIN = jpeg()
PIXELS = np.asarray(decode(PLAIN).rgb)
MAKER_NOTE = b"\xff\xe1" + (2 + 60_000).to_bytes(2, "big") + b"\xff\xda" * 30_000


@pytest.mark.parametrize(
    "data",
    [
        PLAIN + b"\xff\xda" * 500,
        PLAIN + b"ftypmp42" + b"\xff\xd8" + b"\xff\xda" * 200 + b"\xff\xd9",
        PLAIN + PLAIN,
        PLAIN[:2] + MAKER_NOTE + PLAIN[2:],
        PLAIN[:2] + b"\xff\xff\xff" + PLAIN[2:],
    ],
    ids=["markers", "motion photo", "two images", "maker note", "fill bytes"],
)
def test_only_the_scans_of_the_image_count(data: bytes) -> None:
    np.testing.assert_array_equal(np.asarray(decode(data).rgb), PIXELS)


def test_scans_are_bounded() -> None:
    start = PLAIN.index(b"\xff\xda")
    with pytest.raises(BadImage, match="more than 128 scans"):
        decode(PLAIN[:-2] + PLAIN[start:-2] * 128 + b"\xff\xd9")


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"restart_marker_blocks": 4}], ids=str)
def test_a_missing_end_of_whole_pixels(options: dict[str, Any]) -> None:
    data = jpeg(**options)
    np.testing.assert_array_equal(np.asarray(decode(data[:-2]).rgb), np.asarray(decode(data).rgb))


@pytest.mark.parametrize("missing", [3, 4, 10, 100, 1000])
def test_missing_pixels_are_refused(missing: int) -> None:
    with pytest.raises(BadImage, match="truncated"):
        decode(PLAIN[:-missing])


def test_a_progressive_file_without_its_end_is_refused() -> None:
    """Scans that are missing cannot be told from scans that never were."""
    with pytest.raises(BadImage, match="truncated"):
        decode(jpeg(progressive=True)[:-2])


def test_every_prefix_is_refused_or_whole() -> None:
    for length in [*range(2, len(PLAIN), 97), *range(len(PLAIN) - 60, len(PLAIN))]:
        try:
            seen = np.asarray(decode(PLAIN[:length]).rgb)
        except BadImage:
            continue
        np.testing.assert_array_equal(seen, PIXELS)


@pytest.mark.parametrize("piece", [b"\xff\xfe\0\2", b"\xff", b"\0", b"\xff\xd0"], ids=["COM", "fill", "zeros", "RST0"])
def test_very_many_segments_are_refused(piece: bytes) -> None:
    """Pillow reads them one by one, and bytes between them, too."""
    at = PLAIN.index(b"\xff\xda")
    for many in (12_000, 30_000):
        with pytest.raises(BadImage):
            decode(PLAIN[:at] + piece * many + PLAIN[at:])
    np.testing.assert_array_equal(np.asarray(decode(PLAIN[:at] + piece * 2000 + PLAIN[at:]).rgb), PIXELS)


def test_megabytes_of_exif_are_refused() -> None:
    """Pillow joins its segments one by one: 39 MB of them took 7 s."""
    segment = b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)
    other = b"\xff\xe1\xff\xffhttp:/" + bytes(65527)
    with pytest.raises(BadImage, match="more than 4 MB of EXIF"):
        decode(PLAIN[:2] + segment * 70 + PLAIN[2:])
    for sound in (segment * 60, other * 70):
        np.testing.assert_array_equal(np.asarray(decode(PLAIN[:2] + sound + PLAIN[2:]).rgb), PIXELS)
