"""What Ekiben promises of its speed, and whether this run kept it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.run import Row

BARE, OWN, FASTAPI = "a", "a'", "b"
EKIBEN, STORING = "f-embedded", "f-embedded-stored"


@dataclass(frozen=True, slots=True)
class Goal:
    """``value`` is None where the run does not tell."""

    text: str
    value: float | None
    unit: str
    hit: bool | None

    @property
    def verdict(self) -> str:
        return {True: "hit", False: "missed", None: "not measured"}[self.hit]


def goals(rows: Mapping[str, Row]) -> list[Goal]:
    """The goals of the embedded topology, from the medians of the rows (key -> row)."""

    def figure(key: str, concurrency: int, name: str) -> float | None:
        row = rows.get(key)
        median = row.median(concurrency) if row is not None and not row.wrong else None
        return None if median is None else float(getattr(median, name))

    def at_least(text: str, least: float, key: str, than: str) -> Goal:
        mine, theirs = figure(key, 8, "rps"), figure(than, 8, "rps")
        share = mine / theirs if mine is not None and theirs else None
        return Goal(text, share, "x", None if share is None else share >= least)

    served, called = figure(EKIBEN, 1, "p50_ms"), figure(OWN, 1, "p50_ms")
    extra = served - called if served is not None and called is not None else None
    found = [
        at_least("concurrency 8, not storing: at least 0.95 of the bare loop (a)", 0.95, EKIBEN, BARE),
        at_least("concurrency 8, not storing: above plain FastAPI (b)", 1.0, EKIBEN, FASTAPI),
        at_least("concurrency 8, storing: at least 0.8 of the bare loop (a)", 0.8, STORING, BARE),
        Goal(
            "one request alone, not storing: at most 2 ms over the call in process (a') at the median",
            extra,
            "ms",
            None if extra is None else extra <= 2.0,
        ),
    ]
    for key, words in ((EKIBEN, "not storing"), (STORING, "storing")):
        p50, p99 = figure(key, 32, "p50_ms"), figure(key, 32, "p99_ms")
        tail = p99 / p50 if p50 and p99 is not None else None
        # A row with an error is wrong as a whole: its figures do not count, and this goal is missed.
        erred = (row := rows.get(key)) is not None and row.wrong.startswith("invalid: errors")
        hit = False if erred else None if tail is None else tail <= 2.5
        found.append(Goal(f"concurrency 32, {words}: no error, and p99 at most 2.5 x p50", tail, "x", hit))
    return found
