"""The report on Segment Anything: machine, goals, medians and ratios; Markdown for people, JSON with every number."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from bench.goals import Goal
from bench.report import machine
from bench.run import DISTURBED_CORES
from bench.sam.run import EKIBEN, LOOP, PACKAGE, Plan, Row

FASTER, OVER_S, GRID = 3.0, 0.015, 16

WHAT = {
    "encode": "the image encoder's run; of (a) and (b) with reading the JPEG",
    "first prompt": "one point on an image that was not seen before, one mask",
    "next prompt": "one point on the same image, one mask",
    "ten boxes": "ten boxes on the same image, one mask each",
    "automatic": "automatic masks, {grid} x {grid} points, the image not seen before",
    "crops": "the same with one layer of crops: five images to encode",
}


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run found."""

    started: datetime
    plan: Plan
    photo: str
    rows: Mapping[str, Row]
    remarks: Sequence[str]

    def write(self, folder: Path) -> Path:
        """The path of the Markdown file; the JSON lies beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.started:%Y-%m-%d}-sam.md"
        path.write_text(self.markdown())
        path.with_suffix(".json").write_text(json.dumps(self.as_json(), indent=1) + "\n")
        return path

    def as_json(self) -> dict[str, object]:
        """The report with every number, for the JSON file."""
        return {
            "started": self.started.isoformat(timespec="seconds"),
            "machine": machine(),
            "plan": asdict(self.plan),
            "image": self.photo,
            "remarks": list(self.remarks),
            "goals": [{**asdict(each), "verdict": each.verdict} for each in goals(self.rows, self.plan)],
            "rows": [row.as_json() for row in self.rows.values()],
        }

    def markdown(self) -> str:
        """The report as Markdown."""
        parts = [f"# Segment Anything (vit_b): {self.started:%Y-%m-%d %H:%M} UTC", self._header(), self._goals()]
        return "\n\n".join([*parts, self._table(), self._memory()]) + "\n"

    def _header(self) -> str:
        info, plan = machine(), self.plan
        lines = [
            f"- {info['cpu']}, {info['cores']} cores, {info['memory_gb']} GB; {info['system']}",
            f"- commit {info['commit']}",
            f"- Python {info['python']}; {info['versions']}",
            f"- image: {self.photo}",
            f"- {plan.rounds} rounds, contenders in turn, {plan.repeats} next prompts in each; medians over all",
            "- all contenders have equal seeded random weights, two threads, and the machine alone during a request",
            "- (a) and (b) are called in process, their time ends with masks as arrays; Ekiben's is that of a client "
            "that sends the JPEG each time, keeps its connection, and has read the JSON (format rle, nothing stored)",
            "- masks: with (a)'s an IoU of at least 0.999 (automatic: as many, each 0.99), predicted IoUs within "
            "1e-4, or the row is invalid",
        ]
        worst = max((row.other_cores for row in self.rows.values()), default=0.0)
        quiet = f"other processes used at most {worst:.2f} cores during a round"
        lines.append(f"- **disturbed: {quiet}**" if worst > DISTURBED_CORES else f"- {quiet}")
        return "\n".join([*lines, *(f"- {each}" for each in self.remarks)])

    def _goals(self) -> str:
        lines = ["## Goals", "", "| goal | measured | |", "|---|---:|---|"]
        for goal in goals(self.rows, self.plan):
            value = "-" if goal.value is None else f"{goal.value:.2f} {goal.unit}"
            lines.append(f"| {goal.text} | {value} | {goal.verdict} |")
        return "\n".join(lines)

    def _table(self) -> str:
        rows = list(self.rows.values())
        lines = ["## Medians in ms, and as a share of the package's", ""]
        lines += [f"| | {' | '.join(f'{row.label} | x (a)' for row in rows)} |", "|---|" + "---:|---:|" * len(rows)]
        for what, text in WHAT.items():
            cells, base = [], self.rows[PACKAGE].median(what) if PACKAGE in self.rows else None
            for row in rows:
                value = None if row.wrong else row.median(what)
                cells.append("-" if value is None else f"{value * 1e3:.1f}")
                cells.append(f"{value / base:.2f}" if value and base else "-")
            lines.append(f"| {text.format(grid=self.plan.grid)} | {' | '.join(cells)} |")
        decode = self.rows[EKIBEN].median("decode") if EKIBEN in self.rows else None
        if decode is not None:
            lines += ["", f"Ekiben's decoder itself took {decode * 1e3:.1f} ms of a next prompt."]
        lines += [f"\n{row.label}: {row.wrong}" for row in rows if row.wrong]
        return "\n".join(lines)

    def _memory(self) -> str:
        lines = ["## Memory", "", "| | highest resident MB of its processes |", "|---|---:|"]
        lines += [f"| {row.label} | {row.peak_mb or 0:.0f} |" for row in self.rows.values()]
        return "\n".join(lines)


def goals(rows: Mapping[str, Row], plan: Plan) -> list[Goal]:
    """Ekiben's goals, from the medians. Automatic masks of a smaller grid are not evaluated: the encoder dominates."""

    def times(name: str, what: str) -> float | None:
        row = rows.get(name)
        if row is None or row.wrong or (what == "automatic" and plan.grid != GRID):
            return None
        return row.median(what)

    disturbed = any(row.other_cores > DISTURBED_CORES for row in rows.values())

    def faster(than: str, what: str, text: str, least: float) -> Goal:
        mine, theirs = times(EKIBEN, what), times(than, what)
        if mine is None or theirs is None:
            return Goal(text, None, "x", None)
        return Goal(text, theirs / mine, "x", theirs / mine >= least, disturbed)

    text = f"next prompt over HTTP: at most {OVER_S * 1e3:.0f} ms above the decoder's own time, at the median"
    mine, decode = times(EKIBEN, "next prompt"), times(EKIBEN, "decode")
    over = None if mine is None or decode is None else mine - decode
    next_prompt = Goal(
        text, None if over is None else over * 1e3, "ms", None if over is None else over <= OVER_S, disturbed
    )
    return [
        next_prompt,
        faster(
            PACKAGE,
            "automatic",
            f"automatic masks, 16 x 16: at least {FASTER:.0f} times as fast as the package (a)",
            FASTER,
        ),
        faster(LOOP, "next prompt", "next prompt: faster than the plain ONNX loop (b)", 1.0),
        faster(LOOP, "automatic", "automatic masks, 16 x 16: faster than the plain ONNX loop (b)", 1.0),
    ]
