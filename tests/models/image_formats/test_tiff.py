"""TIFF files by what they say of their samples: every reading against the values that were written."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ekiben.errors import BadImage, TooLarge, UnsupportedImage
from models.images import decode
from tests.models.image_formats.tiff_files import Page, tiff

RAMP = np.arange(40 * 30).reshape(30, 40)


def levels(data: bytes) -> NDArray[np.uint8]:
    """The grey levels [H, W]; all channels are equal."""
    rgb = np.asarray(decode(data).rgb)
    assert (rgb == rgb[:, :, :1]).all()
    return rgb[:, :, 0]


@pytest.mark.parametrize("big", [False, True], ids=["TIFF", "BigTIFF"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("photometric", [0, 1])
def test_grey_of_any_bits_order_and_meaning_of_zero(bits: int, order: str, photometric: int, big: bool) -> None:
    values = (RAMP * (2**bits - 1) // RAMP.max()).astype(np.uint16)
    if order == ">" and (big or photometric == 0):  # Pillow has no reader for these
        with pytest.raises(UnsupportedImage, match="1 x 16 bits"):
            decode(tiff(Page(values, photometric), order=order, big=big))
        return
    data = tiff(Page(values, photometric), order=order, big=big)
    expected = (values >> (bits - 8)).astype(np.uint8)
    np.testing.assert_array_equal(levels(data), expected if photometric else 255 - expected)
    assert decode(data).value_range == (0, 2**bits - 1)


@pytest.mark.parametrize("order", ["<", ">"])
def test_signed_numbers(order: str) -> None:
    tiny = (RAMP % 256 - 128).astype(np.int8)
    np.testing.assert_array_equal(levels(tiff(Page(tiny), order=order)), (tiny.astype(int) + 128).astype(np.uint8))
    assert decode(tiff(Page(tiny), order=order)).value_range == (-128, 127)
    ct = (RAMP * 4 - 1024).astype(np.int16)
    decoded = decode(tiff(Page(ct), order=order))
    assert decoded.value_range == (-4096, 4095)
    np.testing.assert_array_equal(np.asarray(decoded.rgb)[:, :, 0], (ct.astype(int) + 4096) // 32)


def test_unsigned_numbers_of_32_bits() -> None:
    values = (RAMP.astype(np.uint64) * (2**32 - 1) // RAMP.max()).astype(np.uint32)
    np.testing.assert_array_equal(levels(tiff(Page(values))), (values >> 24).astype(np.uint8))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("extra", [(), (2,), (0,)], ids=["RGB", "alpha", "unspecified"])
def test_colours_of_16_bits(bits: int, order: str, extra: tuple[int, ...]) -> None:
    top = 2**bits - 1
    rgb = np.stack([RAMP * top // RAMP.max(), top - RAMP * top // RAMP.max(), RAMP % (top + 1)], 2)
    whole = np.concatenate([rgb, np.full((*RAMP.shape, len(extra)), 65535)], 2).astype(np.uint16)
    decoded = decode(tiff(Page(whole, 2, {338: extra} if extra else {}), order=order))
    np.testing.assert_array_equal(np.asarray(decoded.rgb), (rgb >> (bits - 8)).astype(np.uint8))
    assert decoded.value_range == (0, top)


def test_a_declared_maximum_holds_for_a_dark_image() -> None:
    dark = (RAMP % 200).astype(np.uint16)
    assert decode(tiff(Page(dark))).value_range == (0, 255)
    declared = decode(tiff(Page(dark, tags={281: [4095]})))
    assert declared.value_range == (0, 4095)
    np.testing.assert_array_equal(np.asarray(declared.rgb)[:, :, 0], dark >> 4)
    brighter = decode(tiff(Page((RAMP * 5).astype(np.uint16), tags={281: [255]})))  # the values say otherwise
    assert brighter.value_range == (0, 16383)


@pytest.mark.parametrize(
    ("samples", "photometric", "extra"), [(2, 1, (0,)), (2, 1, ()), (3, 1, (0, 0)), (5, 0, (0,) * 4), (2, 3, (0,))]
)
def test_channels_that_are_no_colours_are_refused(samples: int, photometric: int, extra: tuple[int, ...]) -> None:
    values = np.repeat(RAMP[:, :, None] % 256, samples, 2).astype(np.uint8)
    with pytest.raises(UnsupportedImage, match=rf"has {samples} channels and does not say"):
        decode(tiff(Page(values, photometric, {338: extra} if extra else {})))


def test_grey_with_alpha_is_grey() -> None:
    values = np.stack([RAMP % 256, np.full(RAMP.shape, 9)], 2).astype(np.uint8)
    np.testing.assert_array_equal(levels(tiff(Page(values, 1, {338: (2,)}))), values[:, :, 0])


def test_the_page_of_full_size_is_read() -> None:
    full = (RAMP % 251).astype(np.uint8)
    thumbnail = Page(np.full((8, 10), 77, np.uint8), tags={254: [1]})
    mask = Page(np.full(full.shape, 255, np.uint8), tags={254: [4]})
    unmarked = Page(np.full((15, 20), 66, np.uint8))  # half the size: a level of a pyramid
    for pages in ([thumbnail, Page(full)], [Page(full), thumbnail], [Page(full), mask], [unmarked, Page(full)],
                  [Page(full), unmarked, Page(np.full((7, 10), 55, np.uint8))]):  # fmt: skip
        np.testing.assert_array_equal(levels(tiff(*pages)), full)


@pytest.mark.parametrize("others", [[(30, 40)], [(30, 40)] * 2, [(30, 20)], [(29, 40)]], ids=str)
def test_several_pages_are_not_guessed_at(others: list[tuple[int, int]]) -> None:
    pages = [Page(RAMP.astype(np.uint8)), *(Page(np.zeros(shape, np.uint8)) for shape in others)]
    with pytest.raises(UnsupportedImage, match=f"has {len(pages)} pages"):
        decode(tiff(*pages))


def test_floating_point_numbers_have_no_range() -> None:
    with pytest.raises(UnsupportedImage, match="floating-point"):
        decode(tiff(Page((RAMP / RAMP.max()).astype(np.float32))))


def test_a_tile_far_larger_than_the_image_is_refused() -> None:
    page = Page(np.zeros((16, 16), np.uint8), tags={322: [30000], 323: [30000], 324: [8], 325: [256]})
    with pytest.raises(TooLarge, match="tiles of 30000 x 30000 for an image of 16 x 16"):
        decode(tiff(page))


def test_directories_in_a_ring_and_out_of_the_file() -> None:
    data = bytearray(tiff(Page(RAMP.astype(np.uint8))))
    data[-4:] = data[4:8]  # the next directory is the first
    np.testing.assert_array_equal(levels(bytes(data)), RAMP.astype(np.uint8))
    data[-4:] = b"\xff\xff\xff\x7f"
    np.testing.assert_array_equal(levels(bytes(data)), RAMP.astype(np.uint8))
    data[4:8] = b"\xff\xff\xff\x7f"
    with pytest.raises(BadImage):
        decode(bytes(data))


def test_a_second_page_whose_directory_is_cut() -> None:
    """It was no image of one page."""
    data = tiff(Page(RAMP.astype(np.uint8)), Page(RAMP.astype(np.uint8)))
    with pytest.raises(BadImage, match="page 2 of the TIFF is cut off"):
        decode(data[:-8])
