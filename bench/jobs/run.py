"""What a run of the job benchmark consists of: its sizes, its homes, and how a measurement is made again."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from bench.contenders import EXPORT_PYTHON, MODEL
from bench.goals import Goal
from bench.jobs.server import Ekiben, Others
from bench.run import DISTURBED_CORES
from bench.servers import ROOT, Missing, Server, clean_environ

DATA = ROOT.parent / "shared/data"
PHOTOS_MODEL = "mobilenet_v2"

T = TypeVar("T")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """Sizes and durations of the parts."""

    rounds: int = 3
    tries: int = 3
    """A measurement during which other processes used more than DISTURBED_CORES is made again, so often at most."""
    items: int = 2000
    """Of a batch of the drawn image."""
    photo_repeats: int = 10
    few: int = 100
    many: int = 50_000
    submits: int = 200
    starts: int = 40
    starts_behind: int = 20
    idle_s: float = 60.0
    idle_windows: int = 3
    requests: int = 500
    background: int = 10_000
    """Items of the batch beside which requests are answered: so many that it never ends meanwhile."""


QUICK = Plan(1, 1, 200, 1, 50, 1000, 40, 6, 4, 8.0, 1, 80, 3000)


@dataclass(slots=True)
class Part:
    """What one part found: its goals, the lines of its section, every number for the JSON file."""

    number: int
    title: str
    goals: list[Goal] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    wrong: str = ""
    worst_others: float = 0.0

    def as_json(self) -> dict[str, object]:
        """The part for the JSON file, without its lines."""
        goals = [{**asdict(each), "verdict": each.verdict} for each in self.goals]
        return {**asdict(self), "goals": goals, "lines": None}

    def saw(self, others: Sequence[float]) -> bool:
        """Whether one of these measurements was disturbed."""
        self.worst_others = max(self.worst_others, *others)
        return max(others) > DISTURBED_CORES


class Homes:
    """Homes of Ekiben with the models in them, made once."""

    def __init__(self, work: Path, plan: Plan, say: Say) -> None:
        self.work, self.plan, self.say = work, plan, say
        self.first = work / "home"
        self._filled: dict[int, Path] = {}

    def make(self) -> None:
        """The home that the others are copied from. Missing when the model cannot be exported."""
        self.say("exporting and publishing the models")
        publish(self.first)

    def artifact(self, model: str) -> Path:
        """The files of a model, as they were published."""
        return self.first / "blobs/models" / model / "1"

    def copy(self, name: str) -> Path:
        """Another home with the same models, and what else the first has by now."""
        return Path(shutil.copytree(self.first, self.work / name))

    def queued(self, count: int, photo: bytes) -> Path:
        """A home with so many jobs in its queue, of priority 0, each of the same stored image."""
        if count in self._filled:
            return self._filled[count]
        home = self.copy(f"home-{count}")
        with Ekiben(home, workers="0").running_on() as server:
            image = server.classify(photo, f"model={MODEL}")["image"]["id"]
            job = server.submit(b"", f"model={MODEL}&store=false&priority=0&image_id={image}")
            self.say(f"queueing {count} jobs")
            python(server.environ, "-m", "bench.jobs.fill", job, "--count", str(count - 1), "--priority", "0")
        self._filled[count] = home
        return home


def publish(home: Path, **environ: str) -> None:
    """Publish EfficientNet-B0 (random weights, seed 0) and, where ../shared/data has it, MobileNetV2."""
    settings = {**clean_environ(), "EKIBEN_HOME": str(home), **environ}
    python(settings, "-m", "export", MODEL, "--weights", "random", "--seed", "0")
    source = DATA / "models" / PHOTOS_MODEL
    if source.is_dir():
        info = ["--crop", "0.875", "--output", "probabilities", "--mean", "0.501961", "--std", "0.501961"]
        names = ["--name", PHOTOS_MODEL, "--task", "classify", "--labels", str(source / "labels.txt")]
        python(settings, "-m", "export", "import", str(source / "model.onnx"), *names, *info)


def python(environ: dict[str, str], *arguments: str) -> str:
    """What a command in the environment of torch and the tests prints. Missing when it fails."""
    command = [str(EXPORT_PYTHON), *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise Missing(f"python {' '.join(arguments[:3])} ended with status {done.returncode}: {lines[-1][:300]}")
    return done.stdout


def undisturbed(plan: Plan, servers: Sequence[Server], measure: Callable[[], T]) -> tuple[T, float]:
    """The result of ``measure`` and the cores that others used meanwhile: of several tries the quietest."""
    best: tuple[T, float] | None = None
    for _ in range(plan.tries):
        with Others(*servers) as others:
            result = measure()
        if best is None or others.cores < best[1]:
            best = result, others.cores
        if best[1] <= DISTURBED_CORES:
            break
    if best is None:
        raise ValueError("a plan has at least one try")
    return best


def percentile(values: Sequence[float], share: float) -> float:
    """The percentile ``share``, 0-100."""
    return float(np.percentile(values, share))


def say(line: str) -> None:
    """Write a line to stderr, with paths relative to the checkout."""
    print(line.replace(f"{ROOT}/", ""), file=sys.stderr, flush=True)
