"""The report: the machine, the tables, the goals; Markdown for people and JSON with every round."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from bench.contenders import SERVING_PYTHON
from bench.goals import goals
from bench.run import DISTURBED_CORES, Plan, Row
from bench.servers import ROOT

PACKAGES = (
    *("onnxruntime", "numpy", "pillow", "torch", "torchvision"),
    *("fastapi", "starlette", "uvicorn", "uvloop", "httptools", "bentoml", "litserve"),
)
_LIST = """
import json
from importlib import metadata
print(json.dumps({each.name.lower(): each.version for each in metadata.distributions()}))
"""


@dataclass(frozen=True, slots=True)
class Empty:
    """Ekiben without a model. ``first_ready_s`` is on an empty home folder: it makes the database."""

    topology: str
    first_ready_s: float
    ready_s: float
    pss_mb: float
    idle_cores: float


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run found."""

    started: datetime
    plan: Plan
    image_info: str
    rows: Sequence[Row]
    empty: Sequence[Empty | str]
    remarks: Sequence[str]

    def write(self, folder: Path) -> Path:
        """The path of the Markdown file; the JSON lies beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.started:%Y-%m-%d}-classify.md"
        path.write_text(self.markdown())
        path.with_suffix(".json").write_text(json.dumps(self.as_json(), indent=1) + "\n")
        return path

    def as_json(self) -> dict[str, object]:
        """The report with every round, for the JSON file."""
        return {
            "started": self.started.isoformat(timespec="seconds"),
            "machine": machine(),
            "plan": asdict(self.plan),
            "image": self.image_info,
            "remarks": [_shorten(each) for each in self.remarks],
            "goals": [{**asdict(each), "verdict": each.verdict} for each in goals(self._by_key())],
            "ekiben_without_models": [asdict(each) if isinstance(each, Empty) else each for each in self.empty],
            "rows": [{**row.as_json(), "wrong": _shorten(row.wrong)} for row in self.rows],
        }

    def markdown(self) -> str:
        """The report as Markdown."""
        parts = [f"# EfficientNet-B0, one image a request: {self.started:%Y-%m-%d %H:%M} UTC", self._header()]
        parts += [self._goals(), *(self._table(each) for each in self.plan.concurrencies), self._servers()]
        return "\n\n".join(parts) + "\n"

    def _by_key(self) -> dict[str, Row]:
        return {row.contender.key: row for row in self.rows}

    def _header(self) -> str:
        plan, info = self.plan, machine()
        lines = [
            f"- {info['cpu']}, {info['cores']} cores, {info['memory_gb']} GB; {info['system']}",
            f"- commit {info['commit']}",
            f"- Python {info['python']}; {info['versions']}",
            f"- image: {self.image_info}",
            f"- {plan.rounds} rounds of {plan.seconds} s, contenders in turn, after a warm-up of {plan.warm_s} s "
            f"({plan.first_warm_s} s in the first round); figures are medians over the rounds",
            "- load: one thread of wrk on the same machine; (a) and (a') have no client; their two threads are the two "
            "that everybody computes with",
            "- weights are random (seed 0): speed does not depend on them. Every row with figures gave the same five "
            "classes as (a) before it was measured",
        ]
        measured = [each for row in self.rows for found in row.rounds.values() for each in found]
        worst = max((each.other_cores for each in measured), default=0.0)
        quiet = f"other processes used at most {worst:.2f} cores during a measurement"
        lines.append(f"- **disturbed: {quiet}**" if worst > DISTURBED_CORES else f"- {quiet}")
        lines += [f"- {_shorten(each)}" for each in self.remarks]
        return "\n".join(lines)

    def _goals(self) -> str:
        lines = ["## Goals", "", "| goal (Ekiben embedded) | measured | |", "|---|---:|---|"]
        for goal in goals(self._by_key()):
            value = "-" if goal.value is None else f"{goal.value:.2f} {goal.unit}"
            lines.append(f"| {goal.text} | {value} | {goal.verdict} |")
        return "\n".join(lines)

    def _table(self, concurrency: int) -> str:
        lines = [f"## Concurrency {concurrency}", ""]
        lines += [
            "| | contender | requests/s | lowest-highest | x (a) | p50 ms | p75 | p90 | p99 | p50 x (a) | CPU ms |"
        ]
        lines += ["|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
        bare = self._by_key()["a"].median(concurrency)
        for row in self.rows:
            mine, name = row.median(concurrency), f"{row.contender.key} | {row.contender.label}"
            if row.wrong or mine is None:
                lines.append(f"| {name} | {_cell(row.wrong or 'not measured')} | | | | | | | | |")
                continue
            rates = [each.rps for each in row.rounds[concurrency]]
            ratio = f"{mine.rps / bare.rps:.2f}" if bare else "-"
            slower = f"{mine.p50_ms / bare.p50_ms:.2f}" if bare else "-"
            latencies = f"{mine.p50_ms:.2f} | {mine.p75_ms:.2f} | {mine.p90_ms:.2f} | {mine.p99_ms:.2f}"
            lines.append(
                f"| {name} | {mine.rps:.1f} | {min(rates):.1f}-{max(rates):.1f} | {ratio} | {latencies} "
                f"| {slower} | {mine.cpu_ms:.2f} |"
            )
        medians = [row.median(concurrency) for row in self.rows if row.contender.server is not None]
        if clients := [each.client_cores for each in medians if each is not None]:
            share = f"{min(clients):.2f} to {max(clients):.2f} cores"
            lines += ["", f"CPU ms: of all processes of a contender, per request. wrk took {share} beside them."]
        return "\n".join(lines)

    def _servers(self) -> str:
        lines = ["## Processes", ""]
        lines += ["| server | ready after s | memory (PSS) MB | idle cores |", "|---|---:|---:|---:|"]
        for each in self.empty:
            if isinstance(each, Empty):
                ready = f"{each.ready_s:.1f} (first start {each.first_ready_s:.1f})"
                figures = f"{ready} | {each.pss_mb:.0f} | {each.idle_cores:.3f}"
                lines.append(f"| Ekiben {each.topology}, no model | {figures} |")
            else:
                lines.append(f"| {_cell(each)} | | | |")
        for row in self.rows:
            if row.ready_s is not None and row.pss_mb is not None and row.idle_cores is not None:
                figures = f"{row.ready_s:.1f} | {row.pss_mb:.0f} | {row.idle_cores:.3f}"
                lines.append(f"| {row.contender.label}, model loaded | {figures} |")
        return "\n".join(lines)


def machine() -> dict[str, object]:
    """CPU, cores, memory, system, commit and the versions of both environments."""
    text = Path("/proc/cpuinfo").read_text()
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    commit = _output("git", "describe", "--always", "--dirty") or "unknown"
    mine = {name: _version(name) for name in PACKAGES}
    served = json.loads(_output(str(SERVING_PYTHON), "-c", _LIST) or "{}")
    words = [f"{name} {version}" for name, version in mine.items() if version]
    other = [f"{name} {served[name]}" for name, version in mine.items() if name in served and served[name] != version]
    versions = ", ".join(words) + (f". **Ekiben's environment differs: {', '.join(other)}**" if other else "")
    return {
        "cpu": names[0] if names else "unknown CPU",
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory, 1),
        "system": f"{platform.system()} {platform.release()}",
        "commit": commit,
        "python": sys.version.split()[0],
        "versions": versions,
    }


def now() -> datetime:
    """The time in UTC."""
    return datetime.now(UTC)


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def _cell(text: str) -> str:
    return _shorten(text).replace("|", "/").replace("\n", " ")


def _shorten(text: str) -> str:
    return text.replace(f"{ROOT}/", "")
