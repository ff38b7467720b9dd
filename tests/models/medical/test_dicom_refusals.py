"""DICOM files that cannot be read: damage, bombs, and what has no SEG."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate

from ekiben.errors import BadImage, Refusal, TooLarge, UnsupportedImage
from models.images import decode
from models.medical import dicom as dicom_module
from models.medical import dicom_frames
from models.medical.dicom import DicomVolume
from tests.models.medical.dicom_files import DEFLATED, EXPLICIT, PLAIN, RLE, dicom, file
from tests.models.medical.jpeg_lossless_encoder import encode
from tests.models.peak import peak_growth_bytes
from tests.toy_models import encoded, noise

JPEG = "1.2.840.10008.1.2.4.50"


def deflate_bomb() -> bytes:
    packer = zlib.compressobj(9, wbits=-15)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(300)) + packer.flush()
    uid = DEFLATED.encode()
    return bytes(128) + b"DICM\x02\0\x10\0UI" + struct.pack("<H", len(uid)) + uid + packed


def rle_bomb() -> bytes:
    runs = b"\x81\0" * (5 << 20)
    return dicom(
        encapsulate([struct.pack("<16L", 1, 64, *[0] * 14) + runs]),
        RLE,
        **says(64, 64),
    )


def says(rows: int, columns: int, bits: int = 8, **more: Any) -> dict[str, Any]:
    return {
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
        **more,
    }


def many_attributes() -> bytes:
    """A sequence of two million empty items, which are 16 MB here and a gigabyte as objects."""
    uid = EXPLICIT.encode() + b"\0"
    head = bytes(128) + b"DICM\x02\0\x10\0UI" + struct.pack("<H", len(uid)) + uid
    return head + struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 2**32 - 1) + b"\xfe\xff\0\xe0\0\0\0\0" * 2_000_000


JPEG_64 = encoded(noise(64, 48).convert("L"), "JPEG")


@pytest.mark.parametrize(
    ("data", "refusal", "sentence"),
    [
        pytest.param(bytes(128) + b"DICM" + bytes(30), BadImage, "does not say its transfer syntax", id="nothing else"),
        pytest.param(PLAIN[:-7], BadImage, "pixel data of the DICOM file are truncated", id="truncated"),
        pytest.param(PLAIN[:200], BadImage, "DICOM file", id="header truncated"),
        pytest.param(dicom(bytes(100), **says(65535, 65535)), TooLarge, "is 65535 x 65535; at most", id="lying size"),
        pytest.param(dicom(bytes(100), **says(0, 10)), BadImage, "has no pixels", id="no rows"),
        pytest.param(dicom(bytes(100), **says(4000, 4000)), BadImage, "are truncated", id="fewer than it says"),
        pytest.param(
            dicom(bytes(100), **says(1000, 1000, NumberOfFrames=99_999)),
            TooLarge,
            "unpacks to 99999000000",
            id="frames",
        ),
        pytest.param(dicom(bytes(100), **says(5, 5, NumberOfFrames=9)), BadImage, "truncated", id="lying frames"),
        pytest.param(dicom(bytes(100), **says(5, 5, NumberOfFrames=-1)), BadImage, "no pixels", id="negative frames"),
        pytest.param(
            dicom(bytes(100), **says(5, 5, PhotometricInterpretation="RGB")),
            BadImage,
            "says RGB, but its SamplesPerPixel is 1",
            id="RGB of one sample",
        ),
        pytest.param(
            dicom(
                bytes(75),
                **says(5, 5, PhotometricInterpretation="PALETTE COLOR", SamplesPerPixel=3, PlanarConfiguration=0),
            ),
            BadImage,
            "says PALETTE COLOR, but its SamplesPerPixel is 3",
            id="a palette of three samples",
        ),
        pytest.param(dicom(bytes(100), **says(5, 5, 64)), UnsupportedImage, "64 bits a pixel", id="64 bits"),
        pytest.param(
            dicom(encapsulate([b"x" * 50]), "1.2.840.10008.1.2.4.70", **says(48, 64)),
            BadImage,
            "the compressed frame is no JPEG",
            id="JPEG Lossless damaged",
        ),
        pytest.param(
            dicom(encapsulate([b"x" * 50]), "1.2.840.10008.1.2.4.201", **says(48, 64)),
            UnsupportedImage,
            r"High-Throughput JPEG 2000.*1\.2\.840\.10008\.1\.2\.4\.201",
            id="no decoder",
        ),
        pytest.param(
            dicom(encapsulate([JPEG_64]), JPEG, **says(480, 640)),
            BadImage,
            "the compressed frame is 64 x 48, the DICOM file says 640 x 480",
            id="JPEG of another size",
        ),
        pytest.param(
            dicom(encapsulate([JPEG_64[:200]]), JPEG, **says(48, 64)), BadImage, "damaged", id="JPEG truncated"
        ),
        pytest.param(rle_bomb(), BadImage, "unpacks to more than the DICOM file says", id="RLE bomb"),
        pytest.param(many_attributes(), BadImage, "the attributes of the DICOM file are longer", id="attributes"),
        pytest.param(deflate_bomb(), TooLarge, "the deflated DICOM file unpacks to more than", id="deflate bomb"),
        pytest.param(
            dicom(np.zeros((2, 2), np.uint8), PhotometricInterpretation="HSV"), UnsupportedImage, "HSV", id="HSV"
        ),
        pytest.param(file("MR_truncated.dcm").read_bytes(), BadImage, "truncated", id="a real truncated one"),
        pytest.param(file("test-SR.dcm").read_bytes(), UnsupportedImage, "SR Storage.*no image", id="a report"),
        pytest.param(file("liver_1frame.dcm").read_bytes(), UnsupportedImage, "is a segmentation", id="a SEG"),
        pytest.param(file("JPGExtended.dcm").read_bytes(), UnsupportedImage, "JPEG of 12 bits", id="12-bit JPEG"),
    ],
)
def test_what_cannot_be_read_is_refused_cheaply(data: bytes, refusal: type[Refusal], sentence: str) -> None:
    def refused() -> None:
        with pytest.raises(refusal, match=sentence):
            decode(data)

    assert peak_growth_bytes(refused) < 400 << 20


NO_FRAGMENT = struct.pack("<HHL", 0xFFFE, 0xE000, 0)  # the offset table alone


@pytest.mark.parametrize("syntax", [RLE, JPEG, "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.80"])
@pytest.mark.parametrize(("fragments", "frames"), [(0, 1), (1, 2), (3, 1_000_000)])
def test_frames_that_a_compressed_file_does_not_hold(syntax: str, fragments: int, frames: int) -> None:
    """A file of some hundred bytes is refused before anything is made for each of its frames."""
    data = dicom(
        encapsulate([b"xy"] * fragments) if fragments else NO_FRAGMENT, syntax, **says(8, 8, NumberOfFrames=frames)
    )
    counted = "one frame" if frames == 1 else f"{frames} frames"

    def refused() -> None:
        with pytest.raises(BadImage, match=f"says {counted}, but holds {fragments}"):
            DicomVolume(data)

    assert peak_growth_bytes(refused) < 16 << 20


def test_a_fragment_longer_than_the_file() -> None:
    data = dicom(encapsulate([b"x" * 50]), RLE, **says(8, 8))
    place = data.rindex(struct.pack("<HHL", 0xFFFE, 0xE000, 50))
    with pytest.raises(BadImage, match="truncated or damaged"):
        DicomVolume(data[: place + 4] + struct.pack("<L", 0xFFFFFF00) + data[place + 8 :])


def test_frames_in_several_fragments_are_joined() -> None:
    frames = np.arange(2 * 30 * 40, dtype=np.uint16).reshape(2, 30, 40)
    packed = [encode(frame) for frame in frames]
    parted = encapsulate(packed, fragments_per_frame=3)
    with DicomVolume(dicom(parted, "1.2.840.10008.1.2.4.70", **says(30, 40, 16, NumberOfFrames=2))) as volume:
        assert [np.array_equal(volume.values(i), frames[i]) for i in (0, 1)] == [True, True]


@pytest.mark.parametrize("table", [False, True], ids=["no table", "table"])
@pytest.mark.parametrize("fragments", [2, 3, 7])
def test_many_frames_in_several_fragments(fragments: int, table: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an offset table all fragments are looked at once, and not again for every frame."""
    frames = np.random.default_rng(0).integers(0, 4096, (40, 12, 10)).astype(np.uint16)
    parted = encapsulate([encode(frame) for frame in frames], fragments_per_frame=fragments, has_bot=table)
    data = dicom(parted, "1.2.840.10008.1.2.4.70", **says(12, 10, 16, NumberOfFrames=40))
    looked, find = [], dicom_module.find_frames

    def counted(*given: Any) -> Any:
        looked.append(given)
        return find(*given)

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("pydicom looks for each frame from the first fragment on")

    monkeypatch.setattr(dicom_module, "find_frames", counted)
    if not table:
        monkeypatch.setattr(pydicom.encaps, "get_frame", refused)
    with DicomVolume(data) as volume:
        for index in (39, 0, *range(40)):
            np.testing.assert_array_equal(volume.values(index), frames[index])
    assert table or len(looked) == 1


def test_fewer_frames_than_the_file_says_in_more_fragments() -> None:
    parted = encapsulate([encode(np.zeros((8, 8), np.uint16))] * 3, fragments_per_frame=2, has_bot=False)
    with (
        DicomVolume(dicom(parted, "1.2.840.10008.1.2.4.70", **says(8, 8, 16, NumberOfFrames=4))) as volume,
        pytest.raises(BadImage, match="says 4 frames, but holds 3"),
    ):
        volume.values(0)


def test_fragments_are_limited_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_frames, "MAX_FRAGMENTS", 5)
    parted = encapsulate([encode(np.zeros((8, 8), np.uint16))] * 3, fragments_per_frame=2, has_bot=False)
    with (
        DicomVolume(dicom(parted, "1.2.840.10008.1.2.4.70", **says(8, 8, 16, NumberOfFrames=3))) as volume,
        pytest.raises(BadImage, match="more than 5 fragments"),
    ):
        volume.values(0)


def test_no_damage_is_more_than_a_refusal() -> None:
    random = np.random.default_rng(0)
    whole = [
        file(name).read_bytes()
        for name in ("CT_small.dcm", "MR_small_RLE.dcm", "SC_rgb_jpeg_dcmtk.dcm", "image_dfl.dcm")
    ]
    read = 0
    for turn in range(120):
        data = bytearray(whole[turn % len(whole)])
        for place in random.integers(132, min(len(data), 4000), 6):
            data[place] = random.integers(256)
        try:
            read += decode(bytes(data)).width > 0
        except Refusal as refusal:
            assert len(refusal.message) < 400
    assert 0 < read < 120
