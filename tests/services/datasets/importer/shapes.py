"""What bad and odd datasets are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from models.artifact import voc_palette
from tests.services.datasets.importer.uploads import SIDE, Files, blob, dataset, paletted, png
from tests.toy_models import encoded, noise


def altered(files: Files, **changes: bytes | None) -> Files:
    """``files`` with some changed or (None) left out; ``images__a`` stands for ``images/a.png``."""
    new = dict(files)
    for name, data in changes.items():
        path = name.replace("__", "/") + ".png"
        if data is None:
            del new[path]
        else:
            new[path] = data
    return new


def nifti(values: NDArray[Any]) -> bytes:
    return bytes(nib.Nifti1Image(values, np.eye(4)).to_bytes())  # type: ignore[no-untyped-call]


def jpeg(pixels: NDArray[np.uint8], quality: int = 60) -> bytes:
    return encoded(Image.fromarray(pixels), "JPEG", quality=quality)


def ramp(i: int) -> NDArray[np.uint8]:
    """Probabilities of a blurred object: most pixels sure, and a smooth way between."""
    x = np.linspace(-4 - i % 3, 4, SIDE)
    return np.rint(255 / (1 + np.exp(-2 * np.broadcast_to(x, (SIDE, SIDE))))).astype(np.uint8)


def instances() -> NDArray[np.uint16]:
    """49 objects of 5 x 5 pixels, each with a number of its own."""
    mask = np.zeros((SIDE, SIDE), np.uint16)
    for number in range(49):
        top, left = 5 * (number // 7), 5 * (number % 7)
        mask[top : top + 5, left : left + 5] = number + 1
    return mask


def three_levels(i: int) -> NDArray[np.uint8]:
    mask = blob(i, 255)
    mask[:, : SIDE // 4] = 120
    return mask


def smeared(i: int) -> bytes:
    """Three colours, smoothed as drawing programs do."""
    rgb = np.zeros((SIDE, SIDE, 3), np.uint8)
    rgb[5:20, 5:35, 0] = 255
    rgb[20:35, 5:35, 1] = 255
    return encoded(
        Image.fromarray(rgb)
        .resize((200, 200), Image.Resampling.BICUBIC)
        .resize((SIDE, SIDE))
        .rotate(i + 7, Image.Resampling.BICUBIC)
    )


def turned_pair() -> Files:
    """An image that EXIF turns, and its mask, drawn before that."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = encoded(noise(60, 30, 1), "JPEG", exif=exif)
    return {"images/img_99.jpg": image, "masks/img_99.png": png(blob(1, 255, 60, 30))}


def huge() -> bytes:
    return encoded(Image.new("L", (9000, 8000)))


def of(*values: int) -> Callable[[int], bytes]:
    """Masks with vertical bands of ``values``."""

    def mask(i: int) -> bytes:
        columns = np.arange(SIDE) * len(values) // SIDE
        return png(np.roll(np.broadcast_to(np.array(values, np.uint8)[columns], (SIDE, SIDE)), i, 1))

    return mask


def numbers(most: int) -> Callable[[int], bytes]:
    return lambda i: png(blob(i, 1).astype(np.uint16) * most)


def float_masks() -> Files:
    files = only("images", dataset())
    for i in range(24):
        values = blob(i, 1).astype(np.float32) * np.float32(0.75)
        files[f"masks/img_{i:02d}.tif"] = encoded(Image.fromarray(values), "TIFF")
    return files


def only(folder: str, files: Files) -> Files:
    return {name: data for name, data in files.items() if name.startswith(folder)}


def volumes(mask_slices: int) -> Files:
    values = np.random.default_rng(0).integers(0, 999, (20, 20, 4)).astype(np.int16)
    return {
        "images/case.nii": nifti(values),
        "masks/case.nii": nifti(np.zeros((20, 20, mask_slices), np.uint8)),
    }


def rows(rows: list[tuple[int, int, int]], values: NDArray[np.generic]) -> NDArray[np.generic]:
    """``values`` with rows from, to set to a value."""
    changed = values.copy()
    for top, bottom, value in rows:
        changed[top:bottom] = value
    return changed


def voc(i: int) -> bytes:
    """Pascal VOC: class 7 (which is grey), and the border of 255 around it."""
    indices = rows([(5, 30, 255), (8, 27, 7)], np.zeros((SIDE, SIDE), np.uint8))
    return paletted(np.roll(indices, i % 5, 0).astype(np.uint8), list(voc_palette(256)))


def own_palette(i: int) -> bytes:
    """Red on black; every second file counts the colours the other way round."""
    colors = [(0, 0, 0), (255, 0, 0)]
    return paletted((blob(i, 1) ^ (i % 2)).astype(np.uint8), colors[::-1] if i % 2 else colors)


def drawn(*colors: tuple[int, int, int]) -> Callable[[int], bytes]:
    """Masks with bands of colours."""

    def mask(i: int) -> bytes:
        bands = np.array(colors, np.uint8)[np.arange(SIDE) * len(colors) // SIDE]
        return png(np.roll(np.broadcast_to(bands, (SIDE, SIDE, 3)), i, 1))

    return mask


def soft_edge(i: int) -> bytes:
    """A rectangle, enlarged with interpolation."""
    return encoded(Image.fromarray(blob(i, 255, 20, 20)).resize((160, 160), Image.Resampling.BILINEAR))


def upright(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(noise(SIDE, SIDE, 77), "JPEG", exif=exif)


GOOD = dataset()
