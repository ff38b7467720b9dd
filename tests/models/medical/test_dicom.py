"""DICOM: levels as pydicom's own modality and VOI steps give them, refusals, and SEG files that highdicom reads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import highdicom.seg
import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.pixels.utils import pixel_array

from ekiben.errors import BadInput, UnsupportedImage
from models.image_formats.sniffing import sniff
from models.images import decode
from models.medical.dicom import DicomVolume
from models.medical.dicom_seg import NO_SEG
from models.medical.formats import is_dicom, open_volume, write_dicom_seg
from tests.models.medical.dicom_files import GRADIENT, LABELS, PALETTE, PLAIN, dicom, file
from tests.toy_models import encoded, noise


def grey_of(data: bytes | Path, index: int = 0) -> NDArray[np.uint8]:
    with DicomVolume(data) as volume:
        rgb = np.asarray(volume.slice(index))
    assert (rgb == rgb[..., :1]).all()
    return rgb[..., 0]


def reference(data: bytes) -> NDArray[np.float64]:
    """0-255, as pydicom rescales and windows."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    real = apply_modality_lut(dataset.pixel_array, dataset)
    shown = np.asarray(apply_voi_lut(real, dataset, prefer_lut=False), np.float64)
    extremes = np.array([-(2**15), 2**15 - 1], np.int16)
    low, high = apply_voi_lut(apply_modality_lut(extremes, dataset), dataset, prefer_lut=False)
    share = (shown - low) / (float(high) - low) * 255
    return np.asarray(255 - share if dataset.PhotometricInterpretation == "MONOCHROME1" else share)


@pytest.mark.parametrize(
    "attributes",
    [
        {"WindowCenter": 40, "WindowWidth": 400},
        {"WindowCenter": [40, 500], "WindowWidth": [400, 2000]},
        {"WindowCenter": -100, "WindowWidth": 1},
        {"WindowCenter": 40, "WindowWidth": 400, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 40, "WindowWidth": 150, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": 40, "WindowWidth": 400, "PhotometricInterpretation": "MONOCHROME1"},
        {"WindowCenter": 40, "WindowWidth": 400, "RescaleSlope": 1.5, "RescaleIntercept": -24},
    ],
    ids=["window", "first of two", "of width 1", "exact", "sigmoid", "inverted", "rescaled"],
)
def test_windows_are_those_of_pydicom(attributes: dict[str, Any]) -> None:
    data = dicom(GRADIENT, **attributes)
    levels, expected = grey_of(data).astype(float), reference(data)
    assert np.abs(levels - expected).max() <= 0.5 + 1e-6
    assert levels.min() == 0 or attributes.get("VOILUTFunction") == "SIGMOID"
    assert np.ptp(levels) > 200


def test_without_a_window_the_percentiles_of_the_frame_without_padding() -> None:
    pixels = GRADIENT.copy()
    pixels[0] = -2000
    levels = grey_of(dicom(pixels, RescaleSlope=2, RescaleIntercept=7, PixelPaddingValue=-2000))
    low, high = np.percentile(pixels[1:] * 2.0 + 7, (0.5, 99.5))
    assert np.array_equal(levels, np.rint(np.clip((pixels * 2.0 + 7 - low) / (high - low), 0, 1) * 255))
    assert np.array_equal(grey_of(dicom(np.full((4, 5), 300, np.uint16))), np.zeros((4, 5)))


def test_eight_bits_without_a_window_are_shown_as_they_are() -> None:
    pixels = np.arange(20, 140, dtype=np.uint8).reshape(10, 12)
    assert np.array_equal(grey_of(dicom(pixels)), pixels)
    assert np.array_equal(grey_of(dicom(pixels, PhotometricInterpretation="MONOCHROME1")), 255 - pixels)


def test_look_up_tables() -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [256, 0, 16], [int(v) for v in np.arange(256) ** 2]
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    squares = np.rint(np.arange(256).reshape(16, 16) ** 2 / 65535 * 255)
    assert np.array_equal(grey_of(dicom(pixels, VOILUTSequence=[table])), squares)
    table.ModalityLUTType = "US"
    modality = dicom(pixels, ModalityLUTSequence=[table], WindowCenter=32768, WindowWidth=65536)
    assert np.abs(grey_of(modality) - squares).max() <= 1


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_real_files(name: str) -> None:
    dataset = pydicom.dcmread(file(name))
    with open_volume(file(name)) as volume:
        assert (volume.depth, volume.height, volume.width) == (1, dataset.Rows, dataset.Columns)
        assert volume.pixel_spacing == tuple(dataset.PixelSpacing)
        assert np.array_equal(volume.values(0), dataset.pixel_array)
        levels = np.asarray(volume.slice(0))[..., 0]
    real = apply_modality_lut(dataset.pixel_array, dataset).astype(float)
    if "WindowCenter" in dataset:
        expected = np.asarray(apply_voi_lut(real, dataset), float)
        top = 2**dataset.BitsStored - 1
        low = -(2 ** (dataset.BitsStored - 1)) if dataset.PixelRepresentation else 0
        expected = (expected - low) / top * 255
    else:
        low, high = np.percentile(real, (0.5, 99.5))
        expected = np.clip((real - low) / (high - low), 0, 1) * 255
    assert np.abs(levels - expected).max() <= 0.5 + 1e-6


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_rle.dcm",
        "ExplVR_BigEnd.dcm",
    ],
)
def test_colours_are_those_of_pydicom(name: str) -> None:
    expected = pixel_array(file(name))
    image = decode(file(name).read_bytes())
    assert image.mime_type == "application/dicom"
    assert np.array_equal(np.asarray(image.rgb), expected)
    assert np.ptp(expected.reshape(-1, 3), axis=0).min() > 0


def test_sixteen_bit_colour_and_palettes_are_brought_to_eight_bits() -> None:
    wide = pixel_array(file("SC_rgb_rle_16bit.dcm"))
    assert np.array_equal(np.asarray(decode(file("SC_rgb_rle_16bit.dcm").read_bytes()).rgb), wide >> 8)
    dataset = pydicom.dcmread(file("examples_palette.dcm"))
    colors = np.asarray(apply_color_lut(dataset.pixel_array, dataset))
    shown = np.asarray(decode(file("examples_palette.dcm").read_bytes()).rgb)
    assert np.array_equal(shown, colors >> 8 if colors.dtype == np.uint16 else colors)


def test_a_deflated_file() -> None:
    expected = pydicom.dcmread(file("image_dfl.dcm")).pixel_array
    assert np.array_equal(grey_of(file("image_dfl.dcm").read_bytes()), expected)


def test_frames_have_their_own_windows(tmp_path: Path) -> None:
    frames = np.stack([GRADIENT, GRADIENT + 100])

    def group(center: float) -> Dataset:
        window, rescale, item = Dataset(), Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 400
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -10, "US"
        item.FrameVOILUTSequence, item.PixelValueTransformationSequence = [window], [rescale]
        return item

    path = tmp_path / "two.dcm"
    path.write_bytes(dicom(frames, PerFrameFunctionalGroupsSequence=[group(0), group(100)]))
    expected = grey_of(dicom(GRADIENT, WindowCenter=0, WindowWidth=400, RescaleSlope=1, RescaleIntercept=-10))
    with open_volume(path) as volume:
        assert (volume.depth, volume.slice_axis, volume.affine) == (2, 0, None)
        assert np.array_equal(np.asarray(volume.slice(0))[..., 0], expected)
        assert np.array_equal(np.asarray(volume.slice(1))[..., 0], expected)
        assert np.array_equal(volume.values(1), frames[1])
        with pytest.raises(IndexError):
            volume.slice(2)


def test_frames_of_compressed_files_are_found(tmp_path: Path) -> None:
    name = "rtdose_rle.dcm"
    with open_volume(file(name)) as volume:
        for index in (14, 0, 7):
            assert np.array_equal(volume.values(index), pixel_array(file(name), index=index))


def test_an_image_is_sniffed_and_a_volume_is_sent_elsewhere() -> None:
    data = file("CT_small.dcm").read_bytes()
    assert (sniff(data), is_dicom(data), is_dicom(encoded(noise(9, 9)))) == ("application/dicom", True, False)
    image = decode(data)
    assert (image.width, image.height, image.rgb.mode) == (128, 128, "RGB")
    with pytest.raises(UnsupportedImage, match=r"a volume of 15 frames, not an image; /v1/segment takes volumes"):
        decode(file("rtdose.dcm").read_bytes())


def mask_for(name: str | bytes) -> tuple[bytes, NDArray[np.uint8]]:
    data = name if isinstance(name, bytes) else file(name).read_bytes()
    with DicomVolume(data) as volume:
        mask = np.zeros((volume.height, volume.width), np.uint8)
    mask[2:9, 3:8] = 3
    mask[5:, 4:6] = 1
    return data, mask


@pytest.mark.parametrize("name", ["CT_small.dcm", "examples_rgb_color.dcm", "SC_rgb_rle.dcm", "image_dfl.dcm"])
def test_a_seg_has_the_same_pixels(name: str) -> None:
    data, mask = mask_for(name)
    written = write_dicom_seg(data, mask, LABELS, PALETTE)
    source = pydicom.dcmread(io.BytesIO(data))
    seg = highdicom.seg.segread(io.BytesIO(written))
    assert seg.SegmentationType == "BINARY"
    assert [item.SegmentLabel for item in seg.SegmentSequence] == ["liver", "リンパ節"]
    assert (seg.StudyInstanceUID, seg.PatientName) == (source.StudyInstanceUID, source.PatientName)
    pixels = seg.get_pixels_by_source_instance([source.SOPInstanceUID])
    assert np.array_equal(pixels[0, ..., 0], mask == 1)
    assert np.array_equal(pixels[0, ..., 1], mask == 3)


def test_a_seg_of_the_shared_ct_lies_where_the_ct_lies(shared_data: Path) -> None:
    data = (shared_data / "dicom_seg" / "ct_image.dcm").read_bytes()
    _, mask = mask_for(data)
    seg = highdicom.seg.segread(io.BytesIO(write_dicom_seg(data, mask, LABELS, PALETTE)))
    source = pydicom.dcmread(io.BytesIO(data))
    assert source.FrameOfReferenceUID == seg.FrameOfReferenceUID
    shared = seg.SharedFunctionalGroupsSequence[0]
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == source.ImageOrientationPatient
    position = seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    assert position == source.ImagePositionPatient


@pytest.mark.parametrize(
    ("data", "mask", "sentence"),
    [
        pytest.param(PLAIN, np.zeros((30, 40), np.uint8), "there is only background in the mask", id="empty"),
        pytest.param(
            dicom(GRADIENT, SeriesInstanceUID=""),
            np.ones((30, 40), np.uint8),
            "the file has no SeriesInstanceUID",
            id="ids",
        ),
        pytest.param(
            dicom(GRADIENT, SOPClassUID="1.2.840.10008.5.1.4.1.1.2"),
            np.ones((30, 40), np.uint8),
            "no Frame Of Reference UID",
            id="a CT nowhere",
        ),
        pytest.param(
            dicom(np.stack([GRADIENT] * 2)), np.ones((2, 30, 40), np.uint8), "no functional groups", id="plain frames"
        ),
    ],
)
def test_what_has_no_seg_says_why(data: bytes, mask: NDArray[np.uint8], sentence: str) -> None:
    with pytest.raises(UnsupportedImage, match=f"no DICOM SEG: .*{sentence}") as caught:
        write_dicom_seg(data, mask, LABELS, PALETTE)
    assert caught.value.code == NO_SEG


def test_a_seg_of_another_shape_is_refused() -> None:
    with pytest.raises(BadInput, match=r"the mask has the shape \(1, 3, 4\), the DICOM file \(1, 30, 40\)"):
        write_dicom_seg(PLAIN, np.ones((3, 4), np.uint8), LABELS, PALETTE)
