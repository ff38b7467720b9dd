"""Volumes: segmented slice by slice, and answered in the format in which they came."""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import UnsupportedImage
from models.image_formats.sniffing import sniff
from models.images import encode_png
from models.inference_requests import InferenceRequest, InferenceResponse
from models.medical.formats import Volume, is_dicom, is_nifti, open_volume, write_dicom_seg, write_nifti
from models.results import ClassArea, ImageInfo, Timing
from services.runners.progress import ProgressSink

NIFTI, DICOM_SEG = "nifti", "dicom_seg"
"""Renders besides those of images: a mask with the volume's own shape and affine; DICOM segments."""

DICOM = "application/dicom"
MIME_TYPES = {NIFTI: "application/gzip", DICOM_SEG: DICOM}
_HEAD = 4096
_AT_ONCE = 4
"""Slices on their way: while some are computed others are read and packed."""

Infer = Callable[[InferenceRequest], Awaitable[tuple[InferenceResponse, Timing]]]


@dataclass(frozen=True, slots=True)
class Slices:
    """An open volume of an upload. ``mime_type``: of the upload."""

    volume: Volume
    mime_type: str
    _resources: ExitStack

    def close(self) -> None:
        """Remove the temporary file."""
        self._resources.close()


def medical_type(data: bytes) -> str | None:
    """The MIME type of a DICOM or NIfTI file, which may be a volume; None for any other."""
    head = data[:_HEAD]
    if is_dicom(head):
        return DICOM
    return "application/x-nifti" if is_nifti(head) else None


def sniff_any(data: bytes) -> str:
    """The MIME type of an image or a volume; refuses as models.images.sniff."""
    return medical_type(data) or sniff(data)


def open_slices(data: bytes) -> Slices | None:
    """The slices of a NIfTI file, or of a DICOM file with several frames; None for an image. Blocks.

    Refuses what models.medical.formats refuses.
    """
    mime_type = medical_type(data)
    if mime_type is None:
        return None
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile(prefix="ekiben-volume-"))
        file.write(data)
        file.flush()
        volume = stack.enter_context(open_volume(Path(file.name)))
        if mime_type == DICOM and volume.depth == 1:
            return None
        return Slices(volume, mime_type, stack.pop_all())


async def segment_slices(
    slices: Slices, data: bytes, request: InferenceRequest, infer: Infer, *, required: bool, progress: ProgressSink
) -> tuple[InferenceResponse, Timing]:
    """One answer for all slices: classes over the whole volume, and the mask in its format as the only render.

    UnsupportedImage where that is ``required`` and cannot be made.
    """
    volume = slices.volume
    class_map = np.zeros((volume.depth, volume.height, volume.width), np.uint8)
    names: dict[int, ClassArea] = {}
    spent: list[Timing] = []
    reading = asyncio.Lock()  # a volume is read by one thread at a time
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(number: int) -> None:
        async with room:
            async with reading:
                image = await asyncio.to_thread(volume.slice, number)
            encoded = await asyncio.to_thread(encode_png, image)
            answer, timing = await infer(replace(request, image=encoded, renders=("mask",)))
            class_map[number] = await asyncio.to_thread(_levels, answer.renders["mask"])
            names.update({area.class_index: area for area in answer.areas})
            spent.append(timing)
            progress.advance(len(spent) / volume.depth)

    try:
        async with asyncio.TaskGroup() as group:
            for number in range(volume.depth):
                group.create_task(one(number))
    except* Exception as errors:
        raise errors.exceptions[0] from None
    kind, made = await asyncio.to_thread(_in_its_format, slices, data, class_map, names, required)
    info = ImageInfo(volume.width, volume.height, slices.mime_type)
    timing = Timing(spent[0].queue_ms, sum(each.inference_ms for each in spent), volume.depth)
    return InferenceResponse(
        info, areas=_areas(class_map, names), renders={kind: made} if made is not None else {}
    ), timing


def dicom_seg(data: bytes, mask_png: bytes, areas: Sequence[ClassArea], *, required: bool) -> bytes | None:
    """DICOM segments of a DICOM image. None where its file lacks what they would refer to, or shows nothing;
    UnsupportedImage says so where they are ``required``."""
    return _segments(data, _levels(mask_png), {area.class_index: area for area in areas}, required)


def _in_its_format(
    slices: Slices, data: bytes, class_map: NDArray[np.uint8], names: dict[int, ClassArea], required: bool
) -> tuple[str, bytes | None]:
    if slices.mime_type == DICOM:
        return DICOM_SEG, _segments(data, class_map, names, required)
    return NIFTI, write_nifti(slices.volume, class_map)


def _segments(data: bytes, class_map: NDArray[np.uint8], names: dict[int, ClassArea], required: bool) -> bytes | None:
    most = max(names, default=0) + 1
    labels = [names[index].class_name if index in names else "" for index in range(most)]
    palette = [names[index].color if index in names else (0, 0, 0) for index in range(most)]
    try:
        return write_dicom_seg(data, class_map, labels, palette)
    except UnsupportedImage:
        if required:
            raise
        return None


def _levels(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(png)))


def _areas(class_map: NDArray[np.uint8], names: dict[int, ClassArea]) -> tuple[ClassArea, ...]:
    """Over all slices, most pixels first."""
    counts: Counter[int] = Counter()
    for plane in class_map:
        counts.update({int(i): int(n) for i, n in enumerate(np.bincount(plane.ravel())) if n})
    return tuple(
        replace(names[index], pixels=pixels, share=pixels / class_map.size)
        for index, pixels in sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    )
