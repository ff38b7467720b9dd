"""How many run lengths the masks of one response may have."""

from __future__ import annotations

from collections.abc import Iterable

from ekiben.errors import TooLarge
from models.masks.rle import Rle


class MaskRunBound:
    """Bounds the run lengths of the masks of one response: a mask of noise has a million, and all are sent as JSON."""

    MAX_RUNS = 4_000_000

    def __init__(self) -> None:
        self._runs = 0

    def add(self, masks: Iterable[Rle]) -> None:
        """Count the run lengths of ``masks``. TooLarge once there are more than MAX_RUNS."""
        self._runs += sum(len(mask.counts) for mask in masks)
        if self._runs > self.MAX_RUNS:
            raise TooLarge(
                f"the masks have more than {self.MAX_RUNS} runs of pixels; ask for fewer prompts, or be stricter"
            )
