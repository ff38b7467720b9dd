"""Resident bytes, and pages that go back to the system."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from models.engine.memory import reclaim_memory, resident_bytes
from tests.models.peak import status_bytes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

MEGABYTE = 1_000_000


def test_resident_bytes_are_the_kernel_s() -> None:
    # The kernel counts pages per thread and adds them up late, so the two lines may differ by some.
    assert abs(resident_bytes() - status_bytes("VmRSS")) < 4 * MEGABYTE


def test_resident_bytes_follow_what_is_touched() -> None:
    # In a process of its own, for what other threads allocate meanwhile counts too. The kernel may count pages that
    # were unmapped only some time later (a sandbox's does): the test waits for it.
    code = f"""
import time
import numpy as np
from models.engine.memory import resident_bytes
before = resident_bytes()
block = np.ones(64 * {MEGABYTE}, np.uint8)
grown = resident_bytes() - before
del block
end = time.monotonic() + 20
while (left := resident_bytes() - before) > 20 * {MEGABYTE} and time.monotonic() < end:
    time.sleep(0.05)
print(grown, left)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True
    )
    grown, left = map(int, done.stdout.split())
    assert 60 * MEGABYTE < grown < 80 * MEGABYTE
    assert left < 20 * MEGABYTE


def test_freed_memory_goes_back_even_below_something_that_stays() -> None:
    # Blocks under 128 KiB come from the heap, where one that lives keeps all below it from shrinking by itself.
    blocks = [np.ones(60_000, np.uint8) for _ in range(2000)]
    full = resident_bytes()
    last = blocks.pop()
    blocks.clear()
    reclaim_memory()
    end = time.monotonic() + 20
    while full - resident_bytes() <= 90 * MEGABYTE and time.monotonic() < end:
        time.sleep(0.05)
    assert full - resident_bytes() > 90 * MEGABYTE
    assert last.sum() == 60_000
