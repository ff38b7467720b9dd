"""Grey levels, colours and spacing from DICOM attributes alone, against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset

from ekiben.errors import BadImage, UnsupportedImage
from models.medical.dicom_display import color_levels, frame_attributes, grey_levels, rescaled, spacing


def attributes(**given: Any) -> Dataset:
    data = Dataset()
    for name, value in given.items():
        setattr(data, name, value)
    return data


def item(sequence: str, **given: Any) -> Dataset:
    """A functional group with one macro."""
    return attributes(**{sequence: [attributes(**given)]})


def multi_frame(**given: Any) -> Dataset:
    data = attributes(**given)
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    data.set_original_encoding(False, True)
    return data


def table(data: list[int], depth: int, first: int = 0, vr: str = "US") -> Dataset:
    lut = Dataset()
    lut.add_new(0x00283002, vr, [len(data), first, depth])
    lut.add_new(0x00283006, "US", data)
    return lut


ROW: NDArray[np.int16] = np.array([[-300, -1, 0, 1, 2, 3, 300]], np.int16)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # (x - 1.5) / 3 + 0.5, in steps of a third.
        pytest.param({"WindowCenter": 2, "WindowWidth": 4}, [0, 0, 0, 85, 170, 255, 255], id="linear"),
        # (x - 1.5) / 4 + 0.5, which the linear one is not: 0 is 1 / 8, 1 is 3 / 8, 2 is 5 / 8, 3 is 7 / 8.
        pytest.param(
            {"WindowCenter": 1.5, "WindowWidth": 4, "VOILUTFunction": "LINEAR_EXACT"},
            [0, 0, 32, 96, 159, 223, 255],
            id="exact",
        ),
        # Narrower than 1, which only the exact function may be: a step at the centre.
        pytest.param(
            {"WindowCenter": 1.5, "WindowWidth": 0.5, "VOILUTFunction": "LINEAR_EXACT"},
            [0, 0, 0, 0, 255, 255, 255],
            id="exact and narrow",
        ),
        # 1 / (1 + exp(-2 (x - 1))): 0.0180, 0.1192, 0.5, 0.8808 and 0.9820 of 255; the ends do not overflow.
        pytest.param(
            {"WindowCenter": 1, "WindowWidth": 2, "VOILUTFunction": "SIGMOID"},
            [0, 5, 30, 128, 225, 250, 255],
            id="sigmoid",
        ),
        pytest.param(
            {"WindowCenter": 2, "WindowWidth": 4, "VOILUTFunction": "CUBIC"},
            [0, 0, 0, 85, 170, 255, 255],
            id="an unknown function is linear",
        ),
        pytest.param(
            {"WindowCenter": 2, "WindowWidth": 4, "RescaleSlope": "2", "RescaleIntercept": "-1"},
            [0, 0, 0, 85, 255, 255, 255],
            id="rescaled first: 2 x - 1",
        ),
        pytest.param(
            {"WindowCenter": 2, "WindowWidth": 4, "PhotometricInterpretation": "MONOCHROME1"},
            [255, 255, 255, 170, 85, 0, 0],
            id="inverted",
        ),
        pytest.param(
            {"WindowCenter": 2, "WindowWidth": 4, "VOILUTSequence": [table([7] * 4, 8)]},
            [0, 0, 0, 85, 170, 255, 255],
            id="before a look-up table",
        ),
    ],
)
def test_a_window(given: dict[str, Any], expected: list[int]) -> None:
    assert grey_levels(ROW, attributes(**given)).tolist() == [expected]


@pytest.mark.parametrize(
    "given",
    [
        {"WindowCenter": 2},
        {"WindowWidth": 4},
        {"WindowCenter": 2, "WindowWidth": 0},
        {"WindowCenter": 2, "WindowWidth": 0.5},
        {"WindowCenter": 2, "WindowWidth": -4},
        {"WindowCenter": 2, "WindowWidth": 0, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": 2, "WindowWidth": 0, "VOILUTFunction": "SIGMOID"},
        {"WindowCenter": [], "WindowWidth": 4},
    ],
    ids=lambda given: " ".join(f"{name} {value}" for name, value in given.items()),
)
def test_an_impossible_window_is_none(given: dict[str, Any]) -> None:
    """The percentiles are used: of values 0 to 200 they are 1 and 199."""
    values = np.arange(201, dtype=np.int16).reshape(3, 67)
    expected = np.rint(np.clip((values - 1) / 198, 0, 1) * 255)
    assert np.array_equal(grey_levels(values, attributes(**given)), expected)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({"BitsStored": 8}, [5, 7, 16], id="eight bits"),
        pytest.param({"BitsStored": 5}, [41, 58, 132], id="five bits: of 31"),
        pytest.param({"BitsStored": 8, "RescaleSlope": 1}, [0, 46, 255], id="rescaled"),
        pytest.param({"BitsStored": 8, "PixelRepresentation": 1}, [0, 46, 255], id="signed"),
        pytest.param({"BitsStored": 12}, [0, 46, 255], id="twelve bits"),
        pytest.param({}, [0, 46, 255], id="bits not given"),
    ],
)
def test_only_plain_levels_of_eight_bits_are_not_stretched(given: dict[str, Any], expected: list[int]) -> None:
    """Stretched from 5 to 16, which are most of the pixels, 7 is at 2 / 11 of the range."""
    values = np.array([[5] * 100 + [7] + [16] * 100], np.uint8)
    shown = grey_levels(values, attributes(**given))
    assert shown[0, [0, 100, 200]].tolist() == expected


def stretched(values: NDArray[Any], used: NDArray[Any]) -> NDArray[np.float64]:
    """``values`` between the percentiles of ``used``."""
    low, high = np.percentile(used, (0.5, 99.5))
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)


SIGNED = {"BitsStored": 16, "PixelRepresentation": 1}


def test_padding_is_left_out_unless_there_is_nothing_else() -> None:
    values = np.array([[-2000, 10, 20, 30]], np.int16).repeat(50, axis=0)
    shown = grey_levels(values, attributes(PixelPaddingValue=-2000, **SIGNED))
    assert shown[0].tolist() == [0, 0, 128, 255]
    alone = np.full((3, 4), -2000, np.int16)
    assert not grey_levels(alone, attributes(PixelPaddingValue=-2000, **SIGNED)).any()
    inverted = attributes(PixelPaddingValue=-2000, PhotometricInterpretation="MONOCHROME1", **SIGNED)
    assert (grey_levels(alone, inverted) == 255).all()


@pytest.mark.parametrize(
    ("value", "limit"), [(-2000, -1500), (-1500, -2000), (63536, 64036), (63536, -1500), (-1500, 63536)]
)
def test_padding_is_a_range_with_both_ends(value: int, limit: int) -> None:
    """Also where an end is written as US although pixels are signed: 63536 is -2000."""
    values = np.concatenate([np.arange(-2000, -1499), np.arange(-1499, 1000)]).astype(np.int16).reshape(40, 75)
    given = attributes(PixelPaddingValue=value, PixelPaddingRangeLimit=limit, **SIGNED)
    assert np.array_equal(grey_levels(values, given), stretched(values, values[values > -1500]))


@pytest.mark.parametrize(
    ("stored", "given", "padding"),
    [
        pytest.param(
            np.int16, {"BitsStored": 16, "PixelRepresentation": 1, "PixelPaddingValue": 63536}, -2000, id="US"
        ),
        pytest.param(
            np.int16, {"BitsStored": 12, "PixelRepresentation": 1, "PixelPaddingValue": 63536}, -2000, id="12"
        ),
        pytest.param(
            np.int16, {"BitsStored": 12, "PixelRepresentation": 1, "PixelPaddingValue": 2096}, -2000, id="bits"
        ),
        pytest.param(np.uint16, {"BitsStored": 16, "PixelRepresentation": 0, "PixelPaddingValue": -1}, 65535, id="SS"),
        pytest.param(
            np.uint16, {"BitsStored": 12, "PixelRepresentation": 0, "PixelPaddingValue": -1}, 4095, id="SS 12"
        ),
        pytest.param(np.uint16, {"BitsStored": 16, "PixelPaddingValue": 63536}, 63536, id="rightly US"),
    ],
)
def test_padding_of_the_other_sign(stored: type, given: dict[str, Any], padding: int) -> None:
    values = np.arange(400, 1400).reshape(20, 50).astype(stored)
    values[:5] = padding
    assert np.array_equal(grey_levels(values, attributes(**given)), stretched(values, values[5:]))


@pytest.mark.parametrize("given", [None, "", [], [1, 2]])
def test_padding_that_is_no_number_is_none(given: Any) -> None:
    values = np.arange(3000, dtype=np.int16).reshape(50, 60)
    assert np.array_equal(grey_levels(values, attributes(PixelPaddingValue=given, **SIGNED)), stretched(values, values))
    limit = attributes(PixelPaddingValue=0, PixelPaddingRangeLimit=given, **SIGNED)
    assert np.array_equal(grey_levels(values, limit), stretched(values, values[values != 0]))


def test_a_frame_of_several_bands_is_one_image() -> None:
    """Two million pixels are computed in bands; black and white are those of the whole."""
    values = np.add.outer(np.arange(2000), np.arange(1000)).astype(np.int32)
    low, high = np.percentile(values, (0.5, 99.5))
    expected = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)
    assert np.array_equal(grey_levels(values, attributes()), expected)
    windowed = grey_levels(values, attributes(WindowCenter=1500, WindowWidth=1001))
    assert np.array_equal(windowed, np.rint(np.clip((values - 1499.5) / 1000 + 0.5, 0, 1) * 255))


@pytest.mark.parametrize(
    ("lut", "expected"),
    [
        # Below the first mapped value its entry is used, above the last mapped value the last entry.
        pytest.param(table([0, 51, 255], 8, first=1), [0, 0, 0, 0, 51, 255, 255], id="eight bits"),
        pytest.param(table([4095, 1365, 0], 12, first=1), [255, 255, 255, 255, 85, 0, 0], id="twelve bits"),
        pytest.param(table([0, 13107, 65535], 16, first=-1, vr="SS"), [0, 0, 51, 255, 255, 255, 255], id="signed"),
    ],
)
def test_a_voi_lut(lut: Dataset, expected: list[int]) -> None:
    assert grey_levels(ROW, attributes(VOILUTSequence=[lut])).tolist() == [expected]
    inverted = attributes(VOILUTSequence=[lut], PhotometricInterpretation="MONOCHROME1")
    assert grey_levels(ROW, inverted).tolist() == [[255 - level for level in expected]]


@pytest.mark.parametrize(
    ("first", "vr", "given"),
    [
        (-600, "SS", SIGNED),
        (64936, "US", SIGNED),
        (64936, "US", {"BitsStored": 12, "PixelRepresentation": 1}),
        (64936, "US", {"BitsStored": 12, "PixelRepresentation": 0, "RescaleIntercept": -1024, "RescaleSlope": 1}),
        (-600, "SS", {"BitsStored": 12, "PixelRepresentation": 0, "RescaleIntercept": -1024, "RescaleSlope": 1}),
    ],
)
def test_a_voi_lut_from_a_negative_value_on(first: int, vr: str, given: dict[str, Any]) -> None:
    """-600 written as US is 64936. PS3.3, C.11.2.1.1: x has entry x + 600; the first and the last lie beyond."""
    real = np.arange(-1000, 1000).reshape(40, 50)
    stored = (real - int(given.get("RescaleIntercept", 0))).astype(np.int16)
    entries = np.arange(1200) ** 2 % 65536
    expected = np.rint(entries[np.clip(real + 600, 0, 1199)] / 65535 * 255)
    lut = table(entries.tolist(), 16, first=first, vr=vr)
    assert np.array_equal(grey_levels(stored, attributes(VOILUTSequence=[lut], **given)), expected)


def test_a_voi_lut_of_high_unsigned_values_stays_there() -> None:
    stored = np.array([[0, 39999, 40000, 40001, 40002, 65535]], np.uint16)
    for first, vr in ((40000, "US"), (40000 - 65536, "SS")):
        lut = table([0, 51, 255], 8, first=first, vr=vr)
        given = attributes(VOILUTSequence=[lut], BitsStored=16, PixelRepresentation=0)
        assert grey_levels(stored, given).tolist() == [[0, 0, 0, 51, 255, 255]]


def test_a_voi_lut_in_the_group_of_a_frame() -> None:
    """It takes the place of a window of the file, and not of one in its own group."""
    lut = table([0, 51, 255], 8, first=1)
    own, both = item("FrameVOILUTSequence", VOILUTSequence=[lut]), item("FrameVOILUTSequence", VOILUTSequence=[lut])
    both.FrameVOILUTSequence[0].WindowCenter, both.FrameVOILUTSequence[0].WindowWidth = 2, 4
    data = multi_frame(WindowCenter=10, WindowWidth=11, PerFrameFunctionalGroupsSequence=[own, both, Dataset()])
    assert grey_levels(ROW, frame_attributes(data, 0)).tolist() == [[0, 0, 0, 0, 51, 255, 255]]
    assert grey_levels(ROW, frame_attributes(data, 1)).tolist() == [[0, 0, 0, 85, 170, 255, 255]]
    assert frame_attributes(data, 2).WindowCenter == 10


def test_slope_and_intercept_of_a_frame_take_the_place_of_a_modality_lut_of_the_file() -> None:
    lut = table([10, 20, 40], 16)
    own = item("PixelValueTransformationSequence", RescaleSlope=2, RescaleIntercept=1)
    data = multi_frame(ModalityLUTSequence=[lut], PerFrameFunctionalGroupsSequence=[own, Dataset()])
    assert rescaled(ROW, frame_attributes(data, 0)).tolist() == (ROW * 2 + 1).tolist()
    assert rescaled(ROW, frame_attributes(data, 1)).tolist() == [[10, 10, 10, 20, 40, 40, 40]]


def test_a_modality_lut_from_a_negative_value_on() -> None:
    for first, vr in ((-1, "SS"), (65535, "US")):
        given = attributes(ModalityLUTSequence=[table([10, 20, 40], 16, first=first, vr=vr)], **SIGNED)
        assert rescaled(ROW, given).tolist() == [[10, 10, 20, 40, 40, 40, 40]]


@pytest.mark.parametrize("depth", [7, 17])
def test_entries_of_a_voi_lut_have_eight_to_sixteen_bits(depth: int) -> None:
    with pytest.raises(BadImage) as caught:
        grey_levels(ROW, attributes(VOILUTSequence=[table([0, 1], depth)]))
    assert str(caught.value) == f"the VOI LUT of the DICOM file has entries of {depth} bits"


def test_rescaling() -> None:
    assert rescaled(ROW, attributes(RescaleSlope="0.5", RescaleIntercept="10")).tolist() == [
        [-140.0, 9.5, 10.0, 10.5, 11.0, 11.5, 160.0]
    ]
    for same in ({}, {"RescaleSlope": 1, "RescaleIntercept": 0}, {"RescaleSlope": None, "RescaleIntercept": ""}):
        assert rescaled(ROW, attributes(**same)) is ROW
    # The modality LUT, where there is one, is used in place of slope and intercept.
    lut = table([10, 20, 40], 16)
    lut.ModalityLUTType = "US"
    looked_up = rescaled(ROW, attributes(ModalityLUTSequence=[lut], RescaleSlope=9, RescaleIntercept=9))
    assert looked_up.tolist() == [[10, 10, 10, 20, 40, 40, 40]]


def test_groups_of_the_frame_come_before_shared_ones_and_these_before_the_file() -> None:
    shared = item("FrameVOILUTSequence", WindowCenter=20, WindowWidth=21)
    shared.update(item("PixelMeasuresSequence", PixelSpacing=[0.5, 0.25]))
    own = item("FrameVOILUTSequence", WindowCenter=30)
    data = multi_frame(
        WindowCenter=10,
        WindowWidth=11,
        RescaleSlope=3,
        BitsStored=12,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=[own, Dataset()],
    )
    first, second, beyond = (frame_attributes(data, index) for index in (0, 1, 2))
    assert [frame.WindowCenter for frame in (first, second, beyond)] == [30, 20, 20]
    assert {frame.WindowWidth for frame in (first, second, beyond)} == {21}
    assert {(frame.RescaleSlope, frame.BitsStored) for frame in (first, second, beyond)} == {(3, 12)}
    assert spacing(first) == (0.5, 0.25)
    assert "SharedFunctionalGroupsSequence" not in first
    assert data.WindowCenter == 10
    assert frame_attributes(multi_frame(WindowCenter=10), 0).WindowCenter == 10


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"PixelSpacing": [0.7, 0.5]}, (0.7, 0.5)),
        ({"PixelSpacing": [0.7, 0.5], "ImagerPixelSpacing": [1, 2]}, (0.7, 0.5)),
        ({"ImagerPixelSpacing": [1, 2]}, (1.0, 2.0)),
        ({"PixelSpacing": [0, 0.5], "ImagerPixelSpacing": [1, 2]}, (1.0, 2.0)),
        ({"PixelSpacing": 0.5, "ImagerPixelSpacing": [1, 2]}, (1.0, 2.0)),
        ({"PixelSpacing": [1, 2, 3]}, None),
        ({"PixelSpacing": [-1, 2]}, None),
        ({"PixelSpacing": ["inf", "inf"], "ImagerPixelSpacing": [1, 2]}, (1.0, 2.0)),
        ({"PixelSpacing": [1, "nan"]}, None),
        ({"PixelSpacing": None}, None),
        ({}, None),
    ],
)
def test_spacing(given: dict[str, Any], expected: tuple[float, float] | None) -> None:
    assert spacing(attributes(**given)) == expected


def test_colours_of_more_than_eight_bits_lose_the_lowest() -> None:
    stored = np.array([[[4095, 2048, 15], [16, 0, 4080]]], np.uint16)
    shown = color_levels(stored, attributes(BitsStored=12), "RGB")
    assert (shown.dtype, shown.tolist()) == (np.uint8, [[[255, 128, 0], [1, 0, 255]]])
    plain = np.array([[[0, 128, 255]]], np.uint8)
    for bits in ({}, {"BitsStored": 8}, {"BitsStored": 7}):
        assert np.array_equal(color_levels(plain, attributes(**bits), "RGB"), plain)


@pytest.mark.parametrize(("bits", "shift"), [(8, 0), (16, 8)])
def test_a_palette(bits: int, shift: int) -> None:
    colors = np.array([[0, 0, 0], [255, 128, 1], [9, 200, 30], [77, 66, 55]]) << shift
    data = attributes(PhotometricInterpretation="PALETTE COLOR", BitsStored=8, SamplesPerPixel=1)
    for offset, name in enumerate(("Red", "Green", "Blue")):
        data.add_new(0x00281101 + offset, "US", [4, 5, bits])
        entries = colors[:, offset].astype(f"<u{bits // 8}").tobytes()
        setattr(data, f"{name}PaletteColorLookupTableData", entries)
    indices = np.array([[4, 5, 6], [7, 8, 9]], np.uint8)
    expected = (colors >> shift)[[[0, 0, 1], [2, 3, 3]]]
    shown = color_levels(indices, data, "PALETTE COLOR")
    assert (shown.dtype, shown.tolist()) == (np.uint8, expected.tolist())


def test_a_palette_from_a_negative_index_on() -> None:
    """-2 written as US is 65534."""
    colors = np.array([[0, 0, 0], [255, 128, 1], [9, 200, 30], [77, 66, 55]])
    for first, vr in ((-2, "SS"), (65534, "US")):
        data = attributes(PhotometricInterpretation="PALETTE COLOR", SamplesPerPixel=1, **SIGNED)
        for offset, name in enumerate(("Red", "Green", "Blue")):
            data.add_new(0x00281101 + offset, vr, [4, first, 8])
            setattr(data, f"{name}PaletteColorLookupTableData", colors[:, offset].astype("u1").tobytes())
        indices = np.array([[-3, -2, -1], [0, 1, 2]], np.int16)
        shown = color_levels(indices, data, "PALETTE COLOR")
        assert shown.tolist() == colors[[[0, 0, 1], [2, 3, 3]]].tolist()
        assert data.RedPaletteColorLookupTableDescriptor[1] == first


def test_other_photometric_interpretations_are_refused() -> None:
    with pytest.raises(UnsupportedImage) as caught:
        color_levels(np.zeros((1, 1, 3), np.uint8), attributes(), "YBR_ICT")
    assert str(caught.value) == "DICOM images of the photometric interpretation YBR_ICT are not read"
