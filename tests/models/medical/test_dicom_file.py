"""DICOM files by their first bytes: with and without preamble, file meta information and transfer syntax."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate

from ekiben.errors import BadImage
from models.images import decode, sniff
from models.medical.dicom import DicomVolume
from models.medical.formats import is_dicom, open_volume, write_dicom_seg
from tests.models.medical.dicom_files import GRADIENT, LABELS, PALETTE, PLAIN, dicom, file
from tests.toy_models import encoded, noise


def written(*, implicit: bool = False, little: bool = True, **attributes: Any) -> bytes:
    """The data set of a file of GRADIENT, without preamble and file meta information."""
    data = pydicom.dcmread(io.BytesIO(dicom(GRADIENT, **attributes)))
    bare = pydicom.Dataset()
    bare.update({element.tag: element for element in data})
    if not little:
        bare.PixelData = GRADIENT.astype(">i2").tobytes()
    out = io.BytesIO()
    pydicom.dcmwrite(out, bare, implicit_vr=implicit, little_endian=little, force_encoding=True)
    return out.getvalue()


def meta(syntax: bytes | None, *, implicit: bool = False) -> bytes:
    """Group 0002: a version, and the transfer syntax if there is one."""
    if implicit:
        head = struct.pack("<HHL", 2, 1, 2) + b"\0\1"
        return head + (struct.pack("<HHL", 2, 0x10, len(syntax)) + syntax if syntax else b"")
    head = struct.pack("<HH2sHL", 2, 1, b"OB", 0, 2) + b"\0\1"
    return head + (struct.pack("<HH2sH", 2, 0x10, b"UI", len(syntax)) + syntax if syntax else b"")


EXPLICIT_UID, IMPLICIT_UID = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0"
EXPLICIT_DATA, IMPLICIT_DATA = written(), written(implicit=True)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(EXPLICIT_DATA, id="explicit"),
        pytest.param(IMPLICIT_DATA, id="implicit"),
        pytest.param(PLAIN[132:], id="from group 0002 on"),
        pytest.param(meta(EXPLICIT_UID) + EXPLICIT_DATA, id="meta, explicit"),
        pytest.param(meta(IMPLICIT_UID) + IMPLICIT_DATA, id="meta, implicit"),
        pytest.param(meta(EXPLICIT_UID, implicit=True) + EXPLICIT_DATA, id="implicit meta, explicit"),
        pytest.param(meta(None) + EXPLICIT_DATA, id="no transfer syntax, explicit"),
        pytest.param(meta(None) + IMPLICIT_DATA, id="no transfer syntax, implicit"),
        pytest.param(bytes(128) + b"DICM" + meta(None) + EXPLICIT_DATA, id="preamble, no transfer syntax, explicit"),
        pytest.param(bytes(128) + b"DICM" + meta(None) + IMPLICIT_DATA, id="preamble, no transfer syntax, implicit"),
        pytest.param(bytes(128) + b"DICM" + EXPLICIT_DATA, id="preamble, no meta"),
        pytest.param(bytes(128) + b"DICM" + written(little=False), id="preamble, no meta, big endian"),
    ],
)
def test_what_is_missing_is_not_needed(data: bytes, tmp_path: Path) -> None:
    assert is_dicom(data[:2048])
    assert sniff(data) == "application/dicom"
    assert np.array_equal(np.asarray(decode(data).rgb), np.asarray(decode(PLAIN).rgb))
    path = tmp_path / "IM1"
    path.write_bytes(data)
    with open_volume(path) as volume:
        assert np.array_equal(volume.values(0), GRADIENT)


def test_signed_attributes_of_an_implicit_data_set() -> None:
    data = written(implicit=True, PixelPaddingValue=-600, WindowCenter=0, WindowWidth=400)
    whole = dicom(GRADIENT, PixelPaddingValue=-600, WindowCenter=0, WindowWidth=400)
    assert np.array_equal(np.asarray(decode(data).rgb), np.asarray(decode(whole).rgb))


def test_a_seg_of_a_file_without_preamble() -> None:
    whole = file("CT_small.dcm").read_bytes()
    mask = np.zeros((128, 128), np.uint8)
    mask[4:9, 5:11] = 1
    bare = whole[132:]
    seg = pydicom.dcmread(io.BytesIO(write_dicom_seg(bare, mask, LABELS, PALETTE)))
    assert seg.PatientName == pydicom.dcmread(io.BytesIO(whole)).PatientName
    assert int(seg.pixel_array.sum()) == 30


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\x08\0",
        b"\x08\0\x05\0CS\x0a\0ISO_IR 100",
        bytes(400),
        b"\x02\0\x02\0" + bytes(500),
        b"\x08\0" * 300,
        bytes(range(256)) * 3,
        encoded(noise(9, 9)),
        encoded(noise(9, 9), "JPEG"),
        encoded(noise(9, 9), "TIFF"),
        encoded(noise(9, 9), "BMP"),
        b"\x08\0\x05\0CS\x0a\0ISO_IR 100" + b"\x08\0\x05\0CS\x0a\0ISO_IR 100",
    ],
)
def test_other_bytes_are_no_dicom_file(head: bytes) -> None:
    assert not is_dicom(head)


def test_random_bytes_after_a_group_are_no_dicom_file() -> None:
    random = np.random.default_rng(0)
    assert not any(is_dicom(b"\x08\0" + random.bytes(400)) for _ in range(3000))


def test_compressed_pixels_need_a_transfer_syntax() -> None:
    says = {"Rows": 9, "Columns": 9, "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0}
    whole = dicom(encapsulate([encoded(noise(9, 9), "JPEG")]), "1.2.840.10008.1.2.4.50", **says)
    data = whole[whole.index(b"\x08\0\x16\0UI") :]
    with pytest.raises(BadImage, match="are compressed, but its transfer syntax does not say how"):
        DicomVolume(data)
