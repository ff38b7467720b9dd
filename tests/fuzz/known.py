"""What exists on the server that is asked: names and ids made before the run, and those that its answers add."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

MODELS = {"classify": "colours", "segment": "areas", "masks": "sam_toy", "auto_masks": "sam_toy", "cutouts": "sam_toy"}
"""Operation -> a toy that answers it."""

SPARE = "spare"
"""A model of many versions, which may be removed and activated."""

SPARE_VERSIONS = 12


@dataclass
class Known:
    """``lasting``: kind -> ids that no request of the run removes. ``passing``: ids that the run may remove."""

    lasting: dict[str, list[str]] = field(default_factory=dict)
    passing: dict[str, deque[str]] = field(default_factory=dict)

    def one(self, kind: str, rng: random.Random, *, passing: bool = False) -> str:
        """An id of ``kind``; ``passing``: one that may be removed, if there is one."""
        newer = self.passing.get(kind)
        if passing:
            return newer.popleft() if newer else "00000000-0000-7000-8000-000000000000"
        if newer and rng.random() < 0.2:
            return newer[-1]
        return rng.choice(self.lasting.get(kind) or ["00000000-0000-7000-8000-000000000000"])

    def add(self, kind: str, name: str) -> None:
        """Remember an id that an answer named."""
        self.passing.setdefault(kind, deque(maxlen=200)).append(name)
