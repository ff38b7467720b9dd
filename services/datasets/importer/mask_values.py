"""Masks as they were uploaded: their pixels, their statistics, and what is wrong with one of them."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ekiben.errors import BadImage, TooLarge
from models.image_formats.png import SIGNATURE, without_metadata
from models.limits import MAX_IMAGE_BYTES, MAX_PIXELS

MAX_VALUES: Final = 32
"""Values that are taken for classes, unless more class names are given."""

MAX_NAMED_VALUES: Final = 256
"""Values where class names are given: a prepared mask has one byte a pixel."""

# GIF is read for masks only: a widely used data set of cars has its masks in it, and its pixels are lossless.
_READ = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
_LOW, _HIGH = 64, 192  # JPEG artefacts at the edges of a black-and-white mask stay outside these
_MOST_BETWEEN = 0.05  # of the pixels
WHITE: Final = 0xFFFFFF
_BAND_PIXELS = 1 << 20
_FAR_TOO_MANY = 4096  # values: it is a photo, and counting all would take long

Kind = Literal["values", "palette", "colors"]
Fault = Literal["photo", "soft", "instances", "jpeg", "blends", "colors"]


@dataclass(frozen=True, slots=True)
class MaskPixels:
    """The pixels of one mask, EXIF-turned.

    ``data`` [h, w]: grey levels or labels (``values``: uint8, uint16 or int32), indices (``palette``: uint8, and
    ``palette`` holds uint8 [n, 3]), or 0xrrggbb (``colors``: uint32). ``lossy``: the file is a JPEG.
    ``soft``: the file held fractions.
    """

    kind: Kind
    data: NDArray[np.generic]
    palette: NDArray[np.uint8] | None = None
    lossy: bool = False
    soft: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width, height."""
        return self.data.shape[1], self.data.shape[0]

    def levels(self) -> NDArray[np.generic]:
        """The values, or for a palette the level of blue of each pixel: the grey level where it is a grey."""
        return self.data if self.palette is None else self.palette[:, 2][self.data.astype(np.uint8, copy=False)]

    def colors(self) -> NDArray[np.uint32]:
        """0xrrggbb for each pixel; a value is a grey of that level."""
        if self.kind == "colors":
            return self.data.astype(np.uint32, copy=False)
        if self.palette is not None:
            return codes_of(self.palette)[self.data.astype(np.uint8, copy=False)]
        return np.asarray(np.clip(self.data, 0, 255).astype(np.uint32) * np.uint32(0x010101))


@dataclass(frozen=True, slots=True)
class MaskStatistics:
    """The statistics of one mask, which the first pass keeps instead of its pixels.

    ``keys`` and ``counts``: its values and their pixels, ascending; empty where there are more than 256.
    ``key_colors``: for a palette, 0xrrggbb of each key. ``dark`` and ``bright``: pixels below 128 and from it.
    ``exact``: pixels of exactly 0 or 255; these three are of the levels that are seen where ``black_and_white``.
    ``near_binary``: only 0 and 255, with noise or soft edges. ``fault``: what a mask with too many values looks like.
    ``black_and_white``: a palette of which black, white or both are used, each by one index.
    """

    kind: Kind
    distinct: int
    keys: NDArray[np.int64]
    counts: NDArray[np.int64]
    key_colors: NDArray[np.uint32] | None
    lossy: bool
    near_binary: bool
    dark: int
    bright: int
    exact: int
    fault: Fault | None
    black_and_white: bool = False

    @property
    def pixels(self) -> int:
        """All pixels of the mask."""
        return self.dark + self.bright


def read_mask(data: bytes, page: int = 0) -> MaskPixels:
    """The mask in the bytes of a PNG, JPEG, TIFF, BMP, WebP or GIF; ``page`` of a TIFF, from 0. TooLarge,
    BadImage."""
    if len(data) > MAX_IMAGE_BYTES:
        raise TooLarge(f"the mask has {len(data)} bytes; at most {MAX_IMAGE_BYTES} are accepted")
    try:
        return _read(data, page)
    except (TooLarge, MemoryError):
        raise
    except Exception as error:  # Pillow's parsers raise many types of errors on broken files
        if data.startswith(SIGNATURE) and (pixels := _without_metadata(data)) is not None:
            return pixels
        reason = "is truncated" if "truncated" in str(error).lower() else "is not a readable image"
        raise BadImage(f"the mask {reason}") from None


def _without_metadata(png: bytes) -> MaskPixels | None:
    """The mask where only text, a colour profile or another ancillary chunk is too long or damaged; None where not."""
    try:
        return _read(without_metadata(png), 0)
    except (TooLarge, MemoryError):
        raise
    except Exception:
        return None


def _read(data: bytes, page: int) -> MaskPixels:
    image = Image.open(io.BytesIO(data), formats=_READ)
    if page:
        image.seek(page)
    if image.width * image.height > MAX_PIXELS:
        raise TooLarge(f"the mask is {image.width} x {image.height}; at most {MAX_PIXELS} pixels are accepted")
    lossy = image.format in ("JPEG", "MPO") or data[12:16] == b"VP8 "
    image.load()
    with contextlib.suppress(Exception):  # as in models.images.decode: metadata that cannot be parsed is ignored
        ImageOps.exif_transpose(image, in_place=True)
    return _pixels(image, lossy)


def label_mask(values: NDArray[np.integer]) -> MaskPixels:
    """A mask of integer labels [h, w], in the smallest of uint8, uint16 and int32."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for kind in (np.uint8, np.uint16):
        if low >= 0 and high <= np.iinfo(kind).max:
            return MaskPixels("values", values.astype(kind))
    return MaskPixels("values", values.astype(np.int32))


def statistics_of(mask: MaskPixels) -> MaskStatistics:
    """The statistics of a mask."""
    keys, counts = _histogram(mask.data)
    key_colors = None
    black_and_white = False
    if mask.palette is not None and len(keys) <= MAX_NAMED_VALUES:
        key_colors = codes_of(mask.palette)[keys]
        black_and_white = len(np.unique(key_colors)) == len(keys) and bool(np.isin(key_colors, (0, WHITE)).all())
    levels = keys if key_colors is None or not black_and_white else (key_colors & 0xFF).astype(np.int64)
    below = levels < 128
    between = int(counts[(keys >= _LOW) & (keys < _HIGH)].sum()) if mask.kind == "values" else 0
    near_binary = black_and_white or (mask.kind == "values" and not mask.soft and _near_binary(keys, counts, between))
    fault = None if near_binary else _fault(mask, keys, counts)
    kept = len(keys) <= MAX_NAMED_VALUES
    return MaskStatistics(
        kind=mask.kind,
        distinct=len(keys),
        keys=keys if kept else keys[:0],
        counts=counts if kept else counts[:0],
        key_colors=key_colors,
        lossy=mask.lossy,
        near_binary=near_binary,
        dark=int(counts[below].sum()),
        bright=int(counts[~below].sum()),
        exact=int(counts[(levels == 0) | (levels == 255)].sum()),
        fault=fault,
        black_and_white=black_and_white,
    )


def _pixels(image: Image.Image, lossy: bool) -> MaskPixels:
    mode = image.mode
    if mode == "1":
        return MaskPixels("values", np.asarray(image.convert("L")), lossy=lossy)
    if mode == "L":
        return MaskPixels("values", np.asarray(image), lossy=lossy)
    if mode in ("P", "PA"):
        palette = np.array(image.getpalette("RGB") or [0, 0, 0], np.uint8).reshape(-1, 3)
        palette = np.concatenate([palette, np.zeros((256 - len(palette), 3), np.uint8)])
        indices = np.asarray(image if mode == "P" else image.getchannel("P"))
        return MaskPixels("palette", indices, palette, lossy=lossy)
    if mode.startswith("I"):
        return label_mask(np.asarray(image).astype(np.int64))
    if mode == "F":
        return _floats(np.asarray(image))
    if mode in ("LA", "La", "RGBA", "RGBa"):
        return _with_alpha(np.asarray(image.convert("RGBA")), lossy)
    return _of_rgb(np.asarray(image.convert("RGB")), lossy)


def _floats(values: NDArray[np.floating]) -> MaskPixels:
    finite = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    whole = np.rint(finite)
    if np.abs(finite - whole).max(initial=0) < 1e-6:
        return label_mask(whole.astype(np.int64))
    return MaskPixels("values", np.clip(finite * (255 if finite.max() <= 1 else 1), 0, 255).astype(np.uint8), soft=True)


def _with_alpha(rgba: NDArray[np.uint8], lossy: bool) -> MaskPixels:
    """Transparent pixels are background, unless all are. Where all colours are black, the alpha channel is the mask."""
    alpha = rgba[..., 3]
    if not alpha.any():  # nothing would be seen: an alpha channel that was never filled
        return _of_rgb(rgba[..., :3], lossy)
    if not rgba[..., :3].any() and not (alpha == 255).all():
        return MaskPixels("values", alpha, lossy=lossy)
    return _of_rgb(np.where(alpha[..., None] == 0, np.uint8(0), rgba[..., :3]), lossy)


def _of_rgb(rgb: NDArray[np.uint8], lossy: bool) -> MaskPixels:
    if (rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 0] == rgb[..., 2]).all():
        return MaskPixels("values", np.ascontiguousarray(rgb[..., 0]), lossy=lossy)
    return MaskPixels("colors", codes_of(rgb), lossy=lossy)


def codes_of(rgb: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """0xrrggbb of uint8 [..., 3]."""
    codes = rgb[..., 0].astype(np.uint32)
    for channel in (1, 2):
        codes <<= np.uint32(8)
        codes |= rgb[..., channel]
    return codes


def _histogram(data: NDArray[np.generic]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Values, ascending, and the pixels of each. Beyond _FAR_TOO_MANY values only a part of the pixels is counted."""
    flat = data.ravel()
    bands = (flat[start : start + _BAND_PIXELS] for start in range(0, flat.size, _BAND_PIXELS))
    if data.dtype in (np.uint8, np.uint16):
        counts = np.zeros(1 << 8 * data.dtype.itemsize, np.int64)
        for band in bands:  # in bands: bincount needs 8 bytes for each value
            counts += np.bincount(band, minlength=len(counts))
        keys = np.flatnonzero(counts)
        return keys, counts[keys]
    found: Counter[int] = Counter()
    for band in bands:
        values, numbers = np.unique(band, return_counts=True)
        found.update(dict(zip(values.tolist(), numbers.tolist(), strict=True)))
        if len(found) > _FAR_TOO_MANY:
            break
    return (
        np.array(sorted(found), np.int64),
        np.array([found[value] for value in sorted(found)], np.int64),
    )


def _near_binary(keys: NDArray[np.int64], counts: NDArray[np.int64], between: int) -> bool:
    if len(keys) == 1:
        return int(keys[0]) in (0, 255)
    low, high = int(counts[keys < _LOW].sum()), int(counts[keys >= _HIGH].sum())
    if keys[0] < 0 or keys[-1] > 255 or not low or not high:
        return False
    return between <= _MOST_BETWEEN * int(counts.sum()) and between <= high // 2


def _fault(mask: MaskPixels, keys: NDArray[np.int64], counts: NDArray[np.int64]) -> Fault | None:
    """What a mask with too many values looks like; None where it has few enough."""
    total = int(counts.sum())
    if mask.soft:
        return "soft"
    if mask.kind == "colors":
        if len(keys) <= MAX_VALUES:
            return "jpeg" if mask.lossy else None
        if mask.lossy:
            cells = np.bincount((keys >> 22 << 4) + (keys >> 14 & 3) * 4 + (keys >> 6 & 3), weights=counts)
            return "jpeg" if np.sort(cells)[-8:].sum() > 0.9 * total else "photo"
        if np.sort(counts)[-8:].sum() > 0.6 * total:
            return "blends"
        return "colors" if len(keys) <= MAX_NAMED_VALUES else "photo"
    if len(keys) <= MAX_VALUES:
        return "jpeg" if mask.lossy and len(keys) > 2 else None
    ends = int(counts[keys <= 16].sum()), int(counts[keys >= 239].sum())
    if mask.lossy and min(ends) > 0.01 * total and np.sort(counts)[-4:].sum() > 0.5 * total:
        return "jpeg"
    data = mask.data[:: max(1, len(mask.data) // 512)].astype(np.int32)  # some hundred rows suffice
    steps = np.abs(np.diff(data, axis=1))
    inner = (data[:, :-1] != 0) & (data[:, :-1] != 255)
    if not mask.lossy and inner.any() and (steps[inner] == 0).mean() > 0.6:
        return "instances"
    if keys[-1] <= 255 and (sum(ends) > 0.5 * total or (min(ends) > 0.01 * total and steps.mean() <= 4)):
        # A dark image has many levels near 0, too, but none near 255.
        return "soft" if min(ends) else "photo"
    return "photo"
