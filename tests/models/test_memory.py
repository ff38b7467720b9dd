"""Resident bytes, and pages that go back to the system."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from models.memory import give_back, resident_bytes
from tests.models.peak import status_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MEGABYTE = 1_000_000


def test_resident_bytes_are_the_kernel_s() -> None:
    # The kernel counts pages per thread and adds them up late, so the two lines may differ by some.
    assert abs(resident_bytes() - status_bytes("VmRSS")) < 4 * MEGABYTE


def test_resident_bytes_follow_what_is_touched() -> None:
    grown = left = 0
    for _ in range(3):  # what earlier tests left may be given back in between, by their threads
        give_back()
        before = resident_bytes()
        block = np.ones(64 * MEGABYTE, np.uint8)
        grown = resident_bytes() - before
        del block
        left = resident_bytes() - before
        if 60 * MEGABYTE < grown < 80 * MEGABYTE and left < 20 * MEGABYTE:
            break
    assert 60 * MEGABYTE < grown < 80 * MEGABYTE
    assert left < 20 * MEGABYTE


def test_freed_memory_goes_back_even_below_something_that_stays() -> None:
    # Blocks under 128 KiB come from the heap, where one that lives keeps all below it from shrinking by itself.
    blocks = [np.ones(60_000, np.uint8) for _ in range(2000)]
    full = resident_bytes()
    last = blocks.pop()
    blocks.clear()
    give_back()
    assert full - resident_bytes() > 90 * MEGABYTE
    assert last.sum() == 60_000
