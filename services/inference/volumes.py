"""Volumes: segmented slice by slice, and answered in the format in which they came."""

from __future__ import annotations

import asyncio
import io
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ekiben.errors import BadImage, UnsupportedImage
from ekiben.temporary_files import SCRATCH, mark
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
_COUNTED = 1 << 22
"""Voxels counted together: as integers for that they take eight times their size."""

_SLICE_BYTES_PER_PIXEL = 24
"""Of the highest peak from stored values to a PNG, as of a DICOM image."""

Infer = Callable[[InferenceRequest], Awaitable[tuple[InferenceResponse, Timing]]]
InThread = Callable[[Callable[[], Any]], Awaitable[Any]]


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
        file = stack.enter_context(tempfile.NamedTemporaryFile(prefix=f"{SCRATCH}-volume{mark()}"))
        file.write(data)
        file.flush()
        volume = stack.enter_context(open_volume(Path(file.name)))
        if mime_type == DICOM and volume.depth == 1:
            return None
        return Slices(volume, mime_type, stack.pop_all())


def slice_bytes(slices: Slices) -> int:
    """Memory to decode one slice."""
    return slices.volume.width * slices.volume.height * _SLICE_BYTES_PER_PIXEL


class _Answers:
    """What the slices of one volume were answered. Used on the event loop, but for ``keep``.

    The class map is made with the first answer: where none comes, none of it was needed.
    """

    def __init__(self, volume: Volume) -> None:
        self._shape = (volume.depth, volume.height, volume.width)
        self.class_map: NDArray[np.uint8] | None = None
        self.names: dict[int, ClassArea] = {}
        self.answered = 0
        self.queue_ms = self.inference_ms = 0.0

    def add(self, areas: Sequence[ClassArea], timing: Timing) -> None:
        """Count an answer. The time in the queue is that of the first one."""
        self.names.update({area.class_index: area for area in areas})
        self.queue_ms = self.queue_ms if self.answered else timing.queue_ms
        self.inference_ms += timing.inference_ms
        self.answered += 1

    def keep(self, number: int, mask_png: bytes) -> None:
        """Keep the mask of slice ``number``. Blocks."""
        plane = _levels(mask_png)
        if self.class_map is None:
            self.class_map = np.zeros(self._shape, np.uint8)
        self.class_map[number] = plane


async def segment_slices(
    slices: Slices,
    data: bytes,
    request: InferenceRequest,
    infer: Infer,
    *,
    required: bool,
    progress: ProgressSink,
    in_thread: InThread = asyncio.to_thread,
) -> tuple[InferenceResponse, Timing]:
    """One answer for all slices: classes over the whole volume, and the mask in its format as the only render.

    At most _AT_ONCE slices are on their way, whatever number of them the file holds; the first that fails, or a caller
    who leaves, ends the work. ``in_thread``: runs what blocks, with the memory of a slice. UnsupportedImage where the
    mask in its format is ``required`` and cannot be made.
    """
    volume = slices.volume
    answers = _Answers(volume)
    numbers = iter(range(volume.depth))
    one_at_a_time = asyncio.Lock()  # a volume is read by one thread at a time, and a class map made once

    async def work() -> None:
        for number in numbers:
            async with one_at_a_time:
                image = await in_thread(partial(volume.slice, number))
            encoded = await in_thread(partial(encode_png, image))
            answer, timing = await infer(replace(request, image=encoded, renders=("mask",)))
            async with one_at_a_time:
                await in_thread(partial(answers.keep, number, answer.renders["mask"]))
            answers.add(answer.areas, timing)
            progress.advance(answers.answered / volume.depth)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_AT_ONCE, volume.depth)):
                group.create_task(work())
    except* Exception as errors:
        raise errors.exceptions[0] from None
    if answers.class_map is None:
        raise BadImage("the volume has no slices")
    class_map, names = answers.class_map, answers.names
    kind, made = await in_thread(partial(_in_its_format, slices, data, class_map, names, required))
    areas = await in_thread(partial(_areas, class_map, names))
    info = ImageInfo(volume.width, volume.height, slices.mime_type)
    timing = Timing(answers.queue_ms, answers.inference_ms, volume.depth)
    return InferenceResponse(info, areas=areas, renders={kind: made} if made is not None else {}), timing


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
    voxels = class_map.ravel()
    counts = np.zeros(256, np.int64)
    for start in range(0, voxels.size, _COUNTED):
        counts += np.bincount(voxels[start : start + _COUNTED], minlength=256)
    present = sorted(np.flatnonzero(counts).tolist(), key=lambda index: (-counts[index], index))
    return tuple(
        replace(names[index], pixels=int(counts[index]), share=int(counts[index]) / class_map.size) for index in present
    )
