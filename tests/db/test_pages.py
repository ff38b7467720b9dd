"""The ranges of the page number and of the items of a page."""

from __future__ import annotations

import pytest

from db.pages import page_bounds


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ((1, 1), (1, 1)),
        ((7, 1000), (7, 1000)),
        ((0, 0), (1, 1)),
        ((-3, -1), (1, 1)),
        ((2, 1001), (2, 1000)),
        ((10**9, 10**9), (10**9, 1000)),
    ],
)
def test_bounds(given: tuple[int, int], used: tuple[int, int]) -> None:
    assert page_bounds(*given) == used
