"""Files of valid structure with hostile numbers: read, or refused, each the same from the same seed."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ekiben.errors import Refusal
from models.images import decode
from models.medical.formats import open_volume
from services.archives.zip_reader import open_archive
from tests.fuzz import archive_files, medical_files, raster_files

SEEDS = 250
IMAGES = {**raster_files.MAKERS, **medical_files.MAKERS}


def made(kind: str, maker: Callable[[random.Random], bytes], number: int) -> bytes:
    return maker(random.Random(f"{kind}/{number}"))


def counted(read: Callable[[int], None]) -> Counter[str]:
    """How many of the seeds were read and refused; any other error fails with its seed."""
    ends: Counter[str] = Counter()
    for number in range(SEEDS):
        try:
            read(number)
        except Refusal as refusal:
            ends[type(refusal).__name__] += 1
        except BaseException as error:
            raise AssertionError(f"seed {number}") from error
        else:
            ends["read"] += 1
    return ends


@pytest.mark.parametrize("kind", list(IMAGES))
def test_images(kind: str) -> None:
    def read(number: int) -> None:
        assert decode(made(kind, IMAGES[kind], number)).rgb.mode == "RGB"

    ends = counted(read)
    # Not all are refused: what is tried lies behind the first checks. NIfTI files are volumes, and no images.
    assert ends["read"] > SEEDS // 20 or kind == "nifti"
    assert ends["read"] < SEEDS


@pytest.mark.parametrize("kind", list(medical_files.MAKERS))
def test_volumes(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "volume"

    def read(number: int) -> None:
        file.write_bytes(made(kind, medical_files.MAKERS[kind], number))
        with open_volume(file) as volume:
            volume.slice(0)
            volume.values(volume.depth - 1)

    ends = counted(read)
    assert SEEDS // 20 < ends["read"] < SEEDS


def test_archives() -> None:
    def read(number: int) -> None:
        for _ in open_archive(io.BytesIO(made("zip", archive_files.archive, number))):
            pass

    ends = counted(read)
    assert SEEDS // 20 < ends["read"] < SEEDS


def test_a_seed_gives_the_same_file_again() -> None:
    for kind, maker in {**IMAGES, "onnx": archive_files.onnx, "zip": archive_files.archive}.items():
        for number in range(30):
            assert made(kind, maker, number) == made(kind, maker, number), kind
