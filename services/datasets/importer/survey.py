"""The first pass: every image and mask is read once, and its statistics are kept, not its pixels."""

from __future__ import annotations

import filecmp
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ekiben.errors import OutOfMemory, Refusal, TooLarge
from models.images import DecodedImage
from services.datasets.importer.layout import File, Pair
from services.datasets.importer.mask_values import MaskPixels, MaskStatistics, codes_of, statistics_of
from services.datasets.importer.sources import SampleSource, open_source, place

_SOME_ROWS = 16


@dataclass(frozen=True, slots=True)
class SampleInfo:
    """One image with its mask.

    ``pair`` and ``frame``: where it comes from. ``sha256``: of the RGB pixels. ``blank``: all pixels are equal.
    ``brightest``: the highest level of any channel. ``group``: of slices that belong together, else the name.
    """

    name: str
    pair: int
    frame: int
    width: int
    height: int
    sha256: str
    grey: bool
    blank: bool
    brightest: int
    format: str
    turned: bool
    in_volume: bool
    group: str
    mask_sha256: str
    mask_is_image: bool
    mask: MaskStatistics


@dataclass(frozen=True, slots=True)
class Trouble:
    """A file that cannot be used: ``what`` is wrong (a code of the report), and ``why``, in words."""

    what: str
    name: str
    why: str


@dataclass(slots=True)
class Survey:
    """The samples of a dataset, and the files that cannot be used.

    ``turned``: label volumes that are stored with other axes than their images; ``unplaced``: those of which it is not
    known whether they are where their images are.
    """

    samples: list[SampleInfo] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    turned: list[str] = field(default_factory=list)
    unplaced: list[str] = field(default_factory=list)

    def trouble(self, what: str, name: str, why: str) -> None:
        """Add a ``Trouble``."""
        self.troubles.append(Trouble(what, name, why))


def survey(pairs: Sequence[Pair], progress: Callable[[int, int], None]) -> Survey:
    """The statistics of all samples of ``pairs``. ``progress`` is called with pairs done and all pairs."""
    found = Survey()
    for number, pair in enumerate(pairs):
        progress(number, len(pairs))
        _read_pair(found, number, pair)
    progress(len(pairs), len(pairs))
    return found


def sample_name(pair: Pair, frame: int, frames: int) -> str:
    """The pair's key; for slices followed by their number, from 0, padded with zeros."""
    return pair.key if frames == 1 else f"{pair.key}/{frame:0{len(str(frames - 1))}d}"


def _open(found: Survey, what: str, file: File) -> SampleSource | None:
    try:
        return open_source(file.path)
    except OutOfMemory:
        raise
    except Refusal as refusal:
        found.trouble("image_too_large" if isinstance(refusal, TooLarge) else what, file.name, refusal.message)
    return None


def _read_pair(found: Survey, number: int, pair: Pair) -> None:
    image = _open(found, "unreadable_image", pair.image)
    mask = _open(found, "unreadable_mask", pair.mask)
    try:
        if image is None or mask is None or not _place(found, pair, image, mask):
            return
        if image.frames != mask.frames:
            found.trouble("slice_mismatch", pair.key, f"image {image.frames} slices, mask {mask.frames}")
            return
        same_file = not image.volume and filecmp.cmp(pair.image.path, pair.mask.path, shallow=False)
        for frame in range(image.frames):
            _read_frame(found, number, pair, frame, image, mask, same_file)
    finally:
        for source in (image, mask):
            if source is not None:
                source.close()


def _place(found: Survey, pair: Pair, image: SampleSource, mask: SampleSource) -> bool:
    """Whether the mask can be used where it is."""
    try:
        placed = place(image, mask)
    except OutOfMemory:
        raise
    except Refusal as refusal:
        what = "image_too_large" if isinstance(refusal, TooLarge) else "unreadable_mask"
        found.trouble(refusal.code if refusal.code == "geometry_mismatch" else what, pair.mask.name, refusal.message)
        return False
    if placed != "same":
        (found.turned if placed == "turned" else found.unplaced).append(pair.mask.name)
    return True


def _read_frame(
    found: Survey, number: int, pair: Pair, frame: int, image: SampleSource, mask: SampleSource, same_file: bool
) -> None:
    name = sample_name(pair, frame, image.frames)
    what, file = "unreadable_image", pair.image
    try:
        decoded = image.image(frame)
        what, file = "unreadable_mask", pair.mask
        pixels = mask.mask(frame)
    except OutOfMemory:
        raise
    except Refusal as refusal:
        where = file.name if image.frames == 1 else f"{file.name} slice {frame}"
        found.trouble("image_too_large" if isinstance(refusal, TooLarge) else what, where, refusal.message)
        return
    format, turned = image.format(frame)
    if pixels.size != (decoded.width, decoded.height):
        found.trouble("size_mismatch", name, _mismatch(decoded, pixels, turned))
        return
    sha256, grey, brightest, blank = _identity(decoded.rgb)
    info = statistics_of(pixels)
    found.samples.append(
        SampleInfo(
            name=name,
            pair=number,
            frame=frame,
            width=decoded.width,
            height=decoded.height,
            sha256=sha256,
            grey=grey,
            blank=blank,
            brightest=brightest,
            format=format,
            turned=turned and not mask.format(frame)[1],
            in_volume=image.volume,
            group=_group(pair, image),
            mask_sha256=hashlib.sha256(np.ascontiguousarray(pixels.data).data).hexdigest(),
            mask_is_image=same_file or (info.distinct > 2 and _same_image(decoded, pixels)),
            mask=info,
        )
    )


def _group(pair: Pair, image: SampleSource) -> str:
    # A series of DICOM files is one volume, a slice a file.
    return f"series {image.series}" if image.series else pair.key


def _mismatch(decoded: DecodedImage, pixels: MaskPixels, turned: bool) -> str:
    size, mask = (decoded.width, decoded.height), pixels.size
    why = f"image {size[0]} x {size[1]}, mask {mask[0]} x {mask[1]}"
    if mask == size[::-1]:
        return why + (", drawn before EXIF turned the image" if turned else ", width and height exchanged")
    if mask[0] * size[1] == mask[1] * size[0]:
        return why + ", one of them was resized"
    return why


def _identity(rgb: Image.Image) -> tuple[str, bool, int, bool]:
    """SHA-256 of the pixels, whether they are grey, the brightest level, whether all are equal."""
    pixels = np.asarray(rgb)
    digest = hashlib.sha256(np.ascontiguousarray(pixels).data)
    first = pixels[..., 0]
    grey = bool((first == pixels[..., 1]).all() and (first == pixels[..., 2]).all())
    extrema = rgb.getextrema()
    ranges = [(int(low), int(high)) for low, high in extrema]  # type: ignore[misc]
    return digest.hexdigest(), grey, max(high for _, high in ranges), all(low == high for low, high in ranges)


def _same_image(decoded: DecodedImage, pixels: MaskPixels) -> bool:
    rgb = np.asarray(decoded.rgb)
    some = MaskPixels(pixels.kind, pixels.data[:_SOME_ROWS], pixels.palette)  # enough in nearly all cases
    if not np.array_equal(codes_of(rgb[:_SOME_ROWS]), some.colors()):
        return False
    return np.array_equal(codes_of(rgb), pixels.colors())
