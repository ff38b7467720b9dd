"""Slices of volumes: how many are on their way, what is made for them, and when the work ends."""

from __future__ import annotations

import asyncio
import functools
import gzip
import io
import struct
import tracemalloc
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import encapsulate

from ekiben.errors import BadImage, BadInput, Refusal
from models.images import encode_png
from models.inference_requests import InferenceRequest, InferenceResponse
from models.medical.nifti import NiftiVolume
from models.medical.volume import Volume
from models.results import ClassArea, ImageInfo, Timing
from services.inference import volumes
from services.inference.volumes import Infer, Slices, open_slices, segment_slices
from services.runners.progress import NO_PROGRESS, ProgressSink
from tests.models.medical.dicom_files import RLE, dicom

REQUEST = InferenceRequest(b"", renders=("mask",))
AT_ONCE = 4


class Counted(Volume):
    """``depth`` slices of one pixel, each as bright as its number modulo 256; counts the reads."""

    slice_axis, affine, pixel_spacing, height, width = 0, None, None, 1, 1

    def __init__(self, depth: int, fails: int | None = None) -> None:
        self.depth = depth
        self.fails = fails
        self.read: list[int] = []

    def slice(self, index: int) -> Image.Image:
        self.read.append(self.checked(index))
        if index == self.fails:
            raise BadImage("slice is damaged")
        return Image.new("RGB", (1, 1), (index % 256,) * 3)

    def values(self, index: int) -> NDArray[np.integer[Any]]:
        raise NotImplementedError

    def close(self) -> None:
        return None


def of(volume: Volume) -> Slices:
    return Slices(volume, volumes.DICOM, ExitStack())


def answered(image: bytes) -> tuple[InferenceResponse, Timing]:
    """Class 1 for a slice of an odd number."""
    plane = (np.asarray(Image.open(io.BytesIO(image)))[..., 0] & 1).astype(np.uint8)
    present = np.unique(plane).tolist()
    areas = tuple(ClassArea(i, f"class {i}", (i, i, i), int((plane == i).sum()), 0.0) for i in present)
    return InferenceResponse(
        ImageInfo(1, 1, "image/png"), areas=areas, renders={"mask": encode_png(Image.fromarray(plane))}
    ), Timing(2.0, 1.0, 1)


async def infer(request: InferenceRequest) -> tuple[InferenceResponse, Timing]:
    return answered(request.image if isinstance(request.image, bytes) else b"")


def segmented(volume: Volume, infer: Infer = infer, progress: ProgressSink = NO_PROGRESS) -> Any:
    return segment_slices(of(volume), b"", REQUEST, infer, required=False, progress=progress)


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @functools.wraps(test)
    def run(*args: Any, **named: Any) -> None:
        asyncio.run(test(*args, **named))

    return run


@in_loop
async def test_every_slice_is_answered_once_and_counted() -> None:
    data = dicom(np.arange(31, dtype=np.uint8).reshape(31, 1, 1))
    asked: list[int] = []
    shares: list[float] = []

    async def counting(request: InferenceRequest) -> tuple[InferenceResponse, Timing]:
        assert isinstance(request.image, bytes)
        asked.append(Image.open(io.BytesIO(request.image)).getpixel((0, 0))[0])  # type: ignore[index]
        return await infer(request)

    slices = open_slices(data)
    assert slices is not None
    answer, timing = await segment_slices(
        slices, data, REQUEST, counting, required=False, progress=ProgressSink(shares.append)
    )
    slices.close()
    assert sorted(asked) == list(range(31))
    assert [(area.class_index, area.pixels, area.share) for area in answer.areas] == [
        (0, 16, 16 / 31),
        (1, 15, 15 / 31),
    ]
    assert timing == Timing(2.0, 31.0, 31)
    assert shares == [n / 31 for n in range(1, 32)]


@in_loop
async def test_only_a_few_slices_are_on_their_way() -> None:
    """A network that does not answer: some slices wait for it, and the others are not even read."""
    arrived, release = asyncio.Semaphore(0), asyncio.Event()

    async def waits(request: InferenceRequest) -> tuple[InferenceResponse, Timing]:
        arrived.release()
        await release.wait()
        return await infer(request)

    volume = Counted(1_000_000)
    before = len(asyncio.all_tasks())
    running = asyncio.create_task(segmented(volume, waits))
    for _ in range(AT_ONCE):
        await arrived.acquire()
    assert len(volume.read) == AT_ONCE
    assert len(asyncio.all_tasks()) == before + 1 + AT_ONCE
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(volume.read) == AT_ONCE
    assert len(asyncio.all_tasks()) == before


@pytest.mark.parametrize("depth", [1_000_000, 2**31])
@in_loop
async def test_the_first_slice_that_fails_ends_the_work(depth: int) -> None:
    """Nothing was made for the others: no task, and no class map."""
    volume = Counted(depth, fails=0)
    made: list[Any] = []

    def counting(loop: asyncio.AbstractEventLoop, body: Any, **more: Any) -> asyncio.Task[Any]:
        made.append(body)
        return asyncio.Task(body, loop=loop, **more)

    asyncio.get_running_loop().set_task_factory(counting)
    tracemalloc.start()
    try:
        with pytest.raises(BadImage, match="slice is damaged"):
            await segmented(volume)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        asyncio.get_running_loop().set_task_factory(None)
    assert len(volume.read) <= AT_ONCE
    assert len(made) <= AT_ONCE
    assert peak < 1 << 20


@in_loop
async def test_a_refusal_of_the_network_ends_the_work() -> None:
    volume = Counted(100_000)

    async def refuses(request: InferenceRequest) -> tuple[InferenceResponse, Timing]:
        if len(volume.read) > 20:
            raise BadInput("too late")
        return await infer(request)

    with pytest.raises(BadInput, match="too late"):
        await segmented(volume, refuses)
    assert len(volume.read) <= 20 + 2 * AT_ONCE


def claims(kind: str, *, frames: int) -> bytes:
    """A file of some hundred bytes that says it has ``frames`` slices of 64 x 16 pixels."""
    if kind.startswith("NIfTI"):
        header = bytearray(352)
        struct.pack_into("<i8h", header, 0, 348, *[0] * 8)
        struct.pack_into("<4h", header, 40, 3, 64, 16, frames)
        struct.pack_into("<hh", header, 70, 2, 8)
        struct.pack_into("<4f", header, 76, 1, 1, 1, 1)
        struct.pack_into("<f", header, 108, 352)
        header[344:348] = b"n+1\0"
        data = bytes(header) + bytes(100)
        return gzip.compress(data) if kind.endswith("gzip") else data
    says = {"Rows": 16, "Columns": 64, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    if kind == "DICOM":
        return dicom(bytes(100), **says, NumberOfFrames=frames)
    return dicom(encapsulate([b"xy"]), RLE, **says, NumberOfFrames=frames)


@pytest.mark.parametrize("kind", ["DICOM", "DICOM compressed", "NIfTI", "NIfTI gzip"])
def test_what_a_file_claims_is_compared_with_what_it_holds(kind: str) -> None:
    data = claims(kind, frames=30_000 if kind.startswith("NIfTI") else 1_000_000)
    assert len(data) < 700
    open_slices_of(data)  # what is imported on the first time is not counted
    tracemalloc.start()
    try:
        open_slices_of(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def open_slices_of(data: bytes) -> None:
    with pytest.raises(Refusal, match=r"truncated|but holds 1"):
        open_slices(data)


def test_the_range_of_a_volume_of_thin_slices_is_read_at_once(tmp_path: Any) -> None:
    """A million slices of one pixel: black and white are found by one read and not by a million."""
    header = bytearray(544)
    struct.pack_into("<i8s", header, 0, 540, b"n+2\0\r\n\x1a\n")
    struct.pack_into("<hh8q", header, 12, 2, 8, 3, 1, 1, 1_000_000, 1, 1, 1, 1)
    struct.pack_into("<8d", header, 104, *[1.0] * 8)
    struct.pack_into("<q", header, 168, 544)
    path = tmp_path / "thin.nii.gz"
    path.write_bytes(gzip.compress(bytes(header) + (bytes(range(200)) * 5000)))
    with NiftiVolume(path) as volume:
        reads = counted_reads(volume)
        assert (volume.depth, volume.height, volume.width) == (1_000_000, 1, 1)
        shown = [volume.slice(i).getpixel((0, 0))[0] for i in (0, 1, 100, 199)]  # type: ignore[index]
        assert shown == [0, 0, 128, 255]  # from 0.995 to 198.005, which are the percentiles
        assert len(reads) == 5


def counted_reads(volume: NiftiVolume) -> list[int]:
    reads: list[int] = []
    read: Callable[[int, int], bytes] = volume._bytes_at

    def counting(place: int, size: int) -> bytes:
        reads.append(size)
        return read(place, size)

    volume._bytes_at = counting  # type: ignore[method-assign]
    return reads
