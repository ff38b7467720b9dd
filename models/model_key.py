"""The key of one model version in memory."""

from __future__ import annotations

from typing import NamedTuple


class ModelKey(NamedTuple):
    """One version of one owner's model."""

    owner: str
    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"
