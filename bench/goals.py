"""What Ekiben promises of its speed, and whether this run kept it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.load import Figures
from bench.run import DISTURBED_CORES, Row

BARE, OWN, FASTAPI = "a", "a'", "b"
EKIBEN, STORING = "f-embedded", "f-embedded-stored"


@dataclass(frozen=True, slots=True)
class Goal:
    """``value``: None when it was not measured. ``disturbed``: other processes used the cores too."""

    text: str
    value: float | None
    unit: str
    hit: bool | None
    disturbed: bool = False

    @property
    def verdict(self) -> str:
        """Its result in words."""
        word = {True: "hit", False: "missed", None: "not measured"}[self.hit]
        return f"{word}, but disturbed: run it again" if self.disturbed else word


def goals(rows: Mapping[str, Row]) -> list[Goal]:
    """The goals of the embedded topology, from the medians of the rows (key -> row)."""

    def figures(key: str, concurrency: int) -> Figures | None:
        row = rows.get(key)
        return row.median(concurrency) if row is not None and not row.wrong else None

    def at_least(text: str, least: float, key: str, than: str) -> Goal:
        mine, theirs = figures(key, 8), figures(than, 8)
        if mine is None or theirs is None:
            return Goal(text, None, "x", None)
        share = mine.rps / theirs.rps
        return Goal(text, share, "x", share >= least, _disturbed(mine, theirs))

    def alone(text: str, most_ms: float) -> Goal:
        served, called = figures(EKIBEN, 1), figures(OWN, 1)
        if served is None or called is None:
            return Goal(text, None, "ms", None)
        extra = served.p50_ms - called.p50_ms
        return Goal(text, extra, "ms", extra <= most_ms, _disturbed(served, called))

    def tail(text: str, most: float, key: str) -> Goal:
        row, mine = rows.get(key), figures(key, 32)
        if row is not None and row.wrong.startswith("invalid"):  # an error makes the whole row invalid
            return Goal(text, None, "x", False)
        if mine is None:
            return Goal(text, None, "x", None)
        share = mine.p99_ms / mine.p50_ms
        return Goal(text, share, "x", share <= most, _disturbed(mine))

    return [
        at_least("concurrency 8, not storing: at least 0.95 of the bare loop (a)", 0.95, EKIBEN, BARE),
        at_least("concurrency 8, not storing: above plain FastAPI (b)", 1.0, EKIBEN, FASTAPI),
        at_least("concurrency 8, storing: at least 0.8 of the bare loop (a)", 0.8, STORING, BARE),
        alone("one request alone, not storing: at most 2 ms over the call in process (a') at the median", 2.0),
        tail("concurrency 32, not storing: no error, and p99 at most 2.5 x p50", 2.5, EKIBEN),
        tail("concurrency 32, storing: no error, and p99 at most 2.5 x p50", 2.5, STORING),
    ]


def _disturbed(*each: Figures) -> bool:
    return any(figures.other_cores > DISTURBED_CORES for figures in each)
