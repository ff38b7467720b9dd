"""Pages of lists."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

MAX_PAGE = 1000
"""Items of a page, at most."""

P = TypeVar("P")


@dataclass(frozen=True)
class Page(Generic[P]):
    """``items`` of page ``page`` (from 1) with at most ``limit`` a page; ``total`` over all pages."""

    items: Sequence[P]
    total: int
    page: int
    limit: int


def page_bounds(page: int, limit: int) -> tuple[int, int]:
    """``page`` and ``limit`` brought into their ranges: from 1, and 1 to MAX_PAGE."""
    return max(page, 1), min(max(limit, 1), MAX_PAGE)
