"""Entries of look-up tables, as the descriptor and the VR say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from ekiben.errors import BadImage
from models.medical.dicom_lut import first_mapped, read_table


def item(descriptor: list[int], data: Any, vr: str = "US", described: str = "US") -> Dataset:
    lut = Dataset()
    lut.add_new(0x00283002, described, descriptor)
    lut.add_new(0x00283006, vr, data)
    return lut


@pytest.mark.parametrize(
    ("lut", "entries"),
    [
        pytest.param(item([3, 0, 16], [1, 300, 65535]), [1, 300, 65535], id="words"),
        pytest.param(item([3, 0, 16], [1, 300, -1], vr="SS"), [1, 300, 65535], id="words written as SS"),
        pytest.param(item([1, 0, 16], 7), [7], id="one word"),
        pytest.param(item([2, 0, 16], b"\x01\x02\xff\0", vr="OW"), [0x201, 0xFF], id="bytes"),
        pytest.param(item([4, 0, 8], b"\x01\x02\xff\0", vr="OW"), [1, 2, 255, 0], id="bytes of eight bits"),
        pytest.param(item([4, 0, 8], [0x0201, 0x00FF]), [1, 2, 255, 0], id="two entries in a word"),
        pytest.param(item([3, 0, 8], [1, 2, 3]), [1, 2, 3], id="eight bits in words"),
        pytest.param(item([2, 0, 16], [1, 2, 3]), [1, 2], id="more than it says"),
    ],
)
def test_entries(lut: Dataset, entries: list[int]) -> None:
    assert read_table(lut, 0, 65535).entries.tolist() == entries


def test_as_many_as_a_descriptor_can_say() -> None:
    """0 is 65536; 40000 read as SS is -25536."""
    assert len(read_table(item([0, 0, 16], bytes(131072), vr="OW"), 0, 65535).entries) == 65536
    many = item([40000 - 65536, -10, 16], bytes(80000), vr="OW", described="SS")
    table = read_table(many, -32768, 32767)
    assert (len(table.entries), table.first, table.bits) == (40000, -10, 16)


def test_big_endian_bytes() -> None:
    lut = item([2, 0, 16], b"\x01\x02\xff\0", vr="OW")
    assert read_table(lut, 0, 65535, big_endian=True).entries.tolist() == [0x102, 0xFF00]


def test_fewer_entries_than_the_descriptor_says_are_refused() -> None:
    with pytest.raises(BadImage) as caught:
        read_table(item([9, 0, 16], [1, 2]), 0, 255)
    assert str(caught.value) == "a look-up table of the DICOM file has 2 entries, but says 9"


def test_values_are_rounded_and_those_outside_take_the_ends() -> None:
    table = read_table(item([3, 5, 16], [10, 20, 30]), 0, 255)
    values = np.array([-1e300, 4, 5.4, 5.6, 7, 8, 1e300])
    assert table.apply(values).tolist() == [10, 10, 10, 20, 30, 30, 30]


@pytest.mark.parametrize(
    ("first", "count", "low", "high", "meant"),
    [
        (64936, 1200, -32768, 32767, -600),
        (64936, 600, 0, 65535, 64936),
        (-600, 500, 0, 65535, 64936),
        (-600, 1200, 0, 65535, -600),
        (32768, 65536, -32768, 32767, -32768),
        (64512, 4096, -1024, 3071, -1024),
        (64936, 10, 0, 255, 64936),
        (300, 10, 0, 255, 300),
    ],
)
def test_the_first_value_mapped(first: int, count: int, low: int, high: int, meant: int) -> None:
    """That which the values of the pixels meet; as written where both do or none does."""
    assert first_mapped(first, count, low, high) == meant
