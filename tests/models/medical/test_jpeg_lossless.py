"""JPEG Lossless: samples come back exactly from an encoder written apart; damage is refused."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.encaps import encapsulate

from ekiben.errors import BadImage, Refusal
from models.medical.dicom import DicomVolume
from models.medical.jpeg_lossless import decode_lossless
from tests.models.medical.dicom_files import GRADIENT, dicom
from tests.models.medical.jpeg_lossless_encoder import LONG, SHORT_FIRST, encode
from tests.models.peak import peak_growth_bytes
from tests.toy_models import encoded, noise

SV1 = "1.2.840.10008.1.2.4.70"


def smooth(height: int, width: int, top: int, seed: int = 0) -> NDArray[np.uint16]:
    """Waves with noise, from 0 to ``top``, which both occur."""
    y, x = np.mgrid[:height, :width]
    waves = (np.sin(x / 7 + seed) * np.cos(y / 5) + 1) / 2 * top
    pixels = np.clip(waves + np.random.default_rng(seed).normal(0, top / 50, waves.shape), 0, top).astype(np.uint16)
    pixels[0, -1], pixels[-1, 0] = 0, top
    return pixels


SMOOTH = smooth(37, 53, 65535)
COLORS = np.stack([smooth(20, 31, 255, seed) for seed in range(3)], axis=-1)


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("precision", [2, 8, 12, 16])
def test_every_predictor(predictor: int, precision: int) -> None:
    pixels = SMOOTH >> (16 - precision)
    data = encode(pixels, predictor=predictor, precision=precision)
    assert np.array_equal(decode_lossless(data, 37, 53, 1)[..., 0], pixels)


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"restart_lines": 5}, id="restart intervals"),
        pytest.param({"restart_lines": 1, "predictor": 7}, id="every line by itself"),
        pytest.param({"transform": 3}, id="point transform"),
        pytest.param({"transform": 3, "predictor": 6, "restart_lines": 10}, id="point transform and restarts"),
        pytest.param({"tables": (LONG,)}, id="codes of one length"),
    ],
)
def test_what_a_scan_may_have(given: dict[str, Any]) -> None:
    transform = given.get("transform", 0)
    decoded = decode_lossless(encode(SMOOTH, **given), 37, 53, 1)[..., 0]
    assert np.array_equal(decoded, SMOOTH >> transform << transform)


@pytest.mark.parametrize("predictor", [1, 4, 6])
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("tables", [(SHORT_FIRST,), (SHORT_FIRST, LONG)], ids=["one table", "two tables"])
def test_colours(predictor: int, interleaved: bool, tables: Any) -> None:
    data = encode(COLORS, precision=8, predictor=predictor, interleaved=interleaved, tables=tables)
    assert np.array_equal(decode_lossless(data, 20, 31, 3), COLORS)


def test_differences_of_half_the_range_and_data_of_many_chunks() -> None:
    """A difference of 32768 has a category without bits; noise of 16 bits takes 20 bits a sample: several chunks."""
    extremes = np.array([[0, 32768, 0, 65535], [32768, 0, 32769, 1]], np.uint16)
    for predictor in range(1, 8):
        assert np.array_equal(decode_lossless(encode(extremes, predictor=predictor), 2, 4, 1)[..., 0], extremes)
    noisy = np.random.default_rng(1).integers(0, 65536, (200, 300), dtype=np.uint16)
    data = encode(noisy)
    assert len(data) > 2 * (1 << 16)
    assert np.array_equal(decode_lossless(data, 200, 300, 1)[..., 0], noisy)


@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.4.57", SV1])
def test_dicom_files(syntax: str) -> None:
    """Signed values of twelve bits are extended; frames are found; colours are stored by pixel."""
    signed = np.stack([GRADIENT, GRADIENT[::-1] - 100])
    frames = [encode(frame.astype(np.uint16) & 0xFFF, precision=12) for frame in signed]
    says = {"Rows": 30, "Columns": 40, "BitsAllocated": 16, "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 1}
    with DicomVolume(dicom(encapsulate(frames), syntax, **says, NumberOfFrames=2)) as volume:
        assert np.array_equal(volume.values(1), signed[1])
        assert np.array_equal(volume.values(0), signed[0])
    says = {"Rows": 20, "Columns": 31, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    colors = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 1}
    with DicomVolume(dicom(encapsulate([encode(COLORS, precision=8)]), syntax, **says, **colors)) as volume:
        assert np.array_equal(np.asarray(volume.slice(0)), COLORS)


def test_the_shared_file_is_that_of_the_uncompressed_one(shared_data: Any) -> None:
    folder = shared_data / "faults"
    if not (folder / "jpeg_lossless_sv1.dcm").exists():
        pytest.skip("needs the shared inputs")
    with (
        DicomVolume(folder / "jpeg_lossless_sv1.dcm") as one,
        DicomVolume(folder / "no_preamble_explicit.dcm") as other,
    ):
        assert np.array_equal(one.values(0), other.values(0))


GOOD = encode(SMOOTH, predictor=4)


def header(rows: int, columns: int, precision: int = 16) -> bytes:
    """GOOD with another frame header."""
    place = GOOD.index(b"\xff\xc3") + 4
    return GOOD[:place] + struct.pack(">BHH", precision, rows, columns) + GOOD[place + 5 :]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        pytest.param(b"", "is no JPEG", id="nothing"),
        pytest.param(GOOD[:40], "truncated", id="headers truncated"),
        pytest.param(GOOD[: len(GOOD) // 2], "truncated", id="truncated"),
        pytest.param(header(38, 53), "has 53 x 38 pixels of 1 samples, the DICOM file says 53 x 37 of 1", id="size"),
        pytest.param(header(37, 53, 17), "2 to 16 bits", id="bits"),
        pytest.param(encoded(noise(53, 37).convert("L"), "JPEG"), "another process of JPEG", id="baseline"),
        pytest.param(GOOD.replace(b"\xff\xc4", b"\xff\xe4"), "a Huffman table is missing", id="no table"),
        pytest.param(encode(SMOOTH, predictor=0), "a scan header", id="no predictor"),
        pytest.param(
            encode(SMOOTH, restart_lines=5).replace(b"\xff\xd2", b""), "its restart intervals", id="an interval missing"
        ),
    ],
)
def test_damage_is_refused(data: bytes, sentence: str) -> None:
    with pytest.raises(BadImage, match=sentence):
        decode_lossless(data, 37, 53, 1)


def test_a_header_of_many_pixels_takes_no_memory() -> None:
    claims = header(8000, 8000)

    def refused() -> None:
        with pytest.raises(BadImage, match="truncated"):
            decode_lossless(claims, 8000, 8000, 1)

    assert peak_growth_bytes(refused) < 32 << 20


def test_no_damage_is_more_than_a_refusal() -> None:
    random = np.random.default_rng(0)
    read = 0
    for _ in range(150):
        data = bytearray(GOOD)
        for place in random.integers(2, len(data), 3):
            data[place] = random.integers(256)
        with contextlib.suppress(Refusal):
            read += decode_lossless(bytes(data), 37, 53, 1).shape == (37, 53, 1)
    assert 0 < read < 150


def test_more_bits_than_the_file_allocates_are_refused() -> None:
    says = {"Rows": 37, "Columns": 53, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    with DicomVolume(dicom(encapsulate([GOOD]), SV1, **says)) as volume, pytest.raises(BadImage, match="8 bits"):
        volume.slice(0)
