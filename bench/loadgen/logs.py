"""What LoadGen writes: the results in its summary, the answers in its accuracy log."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.contenders import Top5, difference
from bench.servers import Missing

ANSWER = np.dtype([("classes", "<i4", 5), ("confidences", "<f4", 5)])
"""What is handed to LoadGen for a sample; its accuracy log has it as hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Row:
    """Latencies in ms; of Offline there are none, since all of its samples are there from the beginning."""

    scenario: str
    transport: str
    valid: bool
    per_s: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    cpu_ms: float
    """CPU time of the server's processes per query; on a busy machine it holds better than the rest."""
    others: float
    """Cores that other processes took meanwhile."""

    def cells(self) -> list[str]:
        """The cells of its line in the report."""
        latencies = ["-" if each is None else f"{each:.2f}" for each in (self.p50_ms, self.p90_ms, self.p99_ms)]
        verdict = "VALID" if self.valid else "INVALID"
        return [self.scenario, self.transport, f"{self.per_s:.1f}", *latencies, f"{self.cpu_ms:.2f}", verdict]


def read(summary: str, scenario: str, transport: str, cpu_ms: float = 0.0, others: float = 0.0) -> Row:
    """The row of LoadGen's summary. Missing when there is no result in it."""

    def number(pattern: str) -> float | None:
        found = re.search(rf"^{pattern}\s*:\s*([0-9.e+]+)", summary, re.MULTILINE)
        return float(found[1]) if found else None

    rates = ("Completed samples per second", "Samples per second", "QPS w/ loadgen overhead")
    per_s = next((rate for each in rates if (rate := number(each)) is not None), None)
    verdict = re.search(r"^Result is : (VALID|INVALID)$", summary, re.MULTILINE)
    if per_s is None or verdict is None:
        raise Missing(f"LoadGen's summary of {scenario} over {transport} has no result")
    found = [number(rf"{each}\.00 percentile latency \(ns\)") for each in (50, 90, 99)]
    known = scenario != "Offline"
    p50, p90, p99 = (each / 1e6 if known and each is not None else None for each in found)
    return Row(scenario, transport, verdict[1] == "VALID", per_s, p50, p90, p99, cpu_ms, others)


def compare(log: Sequence[dict[str, Any]], expected: Sequence[Top5]) -> list[str]:
    """What is wrong with LoadGen's accuracy log: a sample missing, twice, or with another one's answer."""
    if (got := sorted(each["qsl_idx"] for each in log)) != list(range(len(expected))):
        return [f"{len(got)} answers, of {len(set(got))} different samples, to {len(expected)} samples"]
    wrong = []
    for each in log:
        try:
            reason = difference(expected[each["qsl_idx"]], unpack(bytes.fromhex(each["data"])))
        except ValueError as error:
            reason = str(error)
        if reason:
            wrong.append(f"sample {each['qsl_idx']}: {reason}")
    return wrong


def pack(top5: Top5) -> bytes:
    """An answer as bytes of ANSWER."""
    return np.array((top5[0], top5[1]), ANSWER).tobytes()


def unpack(data: bytes) -> Top5:
    """The answer in bytes of ANSWER. Raises ValueError when it is none."""
    found = np.frombuffer(data, ANSWER, 1)[0]
    return [int(each) for each in found["classes"]], [float(each) for each in found["confidences"]]
