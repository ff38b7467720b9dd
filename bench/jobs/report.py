"""The report on jobs: machine, goals, a section for each part; Markdown for people, JSON with every number."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from bench.contenders import SERVING_PYTHON
from bench.jobs.run import Part, Plan
from bench.report import machine
from bench.run import DISTURBED_CORES
from bench.servers import ROOT

_VERSIONS = """
from importlib import metadata
print(", ".join(f"{name} {metadata.version(name)}" for name in ("dbos", "sqlalchemy", "sqlmodel")), end=", ")
import sqlite3
print("SQLite", sqlite3.sqlite_version)
"""


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run found."""

    started: datetime
    plan: Plan
    quick: bool
    parts: Sequence[Part]

    def write(self, folder: Path) -> Path:
        """The path of the Markdown file; the JSON lies beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.started:%Y-%m-%d}-jobs.md"
        path.write_text(self.markdown())
        path.with_suffix(".json").write_text(json.dumps(self.as_json(), indent=1) + "\n")
        return path

    def as_json(self) -> dict[str, object]:
        """The report with every number, for the JSON file."""
        return {
            "started": self.started.isoformat(timespec="seconds"),
            "machine": {**machine(), "queue": _versions()},
            "plan": asdict(self.plan),
            "quick": self.quick,
            "parts": [part.as_json() for part in self.parts],
        }

    def markdown(self) -> str:
        """The report as Markdown."""
        sections = [f"# Jobs: {self.started:%Y-%m-%d %H:%M} UTC", self._header(), self._goals()]
        for part in self.parts:
            text = "\n".join(part.lines)
            sections += [
                f"## {part.number}. {part.title}",
                f"**invalid: {part.wrong}**\n\n{text}" if part.wrong else text,
            ]
        return "\n\n".join(section.strip().replace(f"{ROOT}/", "") for section in sections if section) + "\n"

    def _header(self) -> str:
        info, plan = machine(), self.plan
        lines = ["- **`--quick`: it shows that everything works; its numbers mean nothing**"] if self.quick else []
        lines += [
            f"- {info['cpu']}, {info['cores']} cores, {info['memory_gb']} GB; {info['system']}",
            f"- commit {info['commit']}",
            f"- Python {info['python']}; {info['versions']}; {_versions()}",
            f"- {plan.rounds} rounds, in turn; figures are medians over the rounds; one worker, as shipped, on SQLite "
            "unless said otherwise",
            "- EfficientNet-B0 has random weights (seed 0): speed does not depend on them",
        ]
        worst = max((part.worst_others for part in self.parts), default=0.0)
        quiet = f"other processes used at most {worst:.2f} cores during a measurement"
        lines.append(f"- **disturbed: {quiet}**" if worst > DISTURBED_CORES else f"- {quiet}")
        return "\n".join(lines)

    def _goals(self) -> str:
        lines = ["## Goals", "", "| goal | measured | |", "|---|---:|---|"]
        for part in self.parts:
            for goal in part.goals:
                value = "-" if goal.value is None else f"{goal.value:.2f} {goal.unit}"
                lines.append(f"| {part.number}. {goal.text} | {value} | {goal.verdict} |")
            if part.wrong:
                lines.append(f"| {part.number}. {part.title} | - | invalid |")
        return "\n".join(lines)


def _versions() -> str:
    """Of what the queue rests on, in the environment that Ekiben is served from."""
    done = subprocess.run([str(SERVING_PYTHON), "-c", _VERSIONS], capture_output=True, text=True, check=False)
    return done.stdout.strip()
