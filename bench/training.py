"""``python -m bench.training``: a training over the API beside the same network in a plain MONAI script.

Both get the same images for the same parts, the same batches and both cores; they take turns, never at once.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contenders import EXPORT_PYTHON
from bench.jobs.server import Ekiben
from bench.report import machine, now
from bench.servers import ROOT, Missing, clean_environ

MOST_TIMES = 1.1
LEAST_DICE = 0.91
DATA = ROOT.parent / "shared" / "data" / "nuclei"
IMAGES = 160


@dataclass(frozen=True, slots=True)
class Epochs:
    """Median seconds of an epoch, its validation included, of each round; the first epoch of a round warms up."""

    ours: list[float]
    plain: list[float]

    @property
    def ratios(self) -> list[float]:
        """Ekiben's time in terms of the script's, by round."""
        return [ours / plain for ours, plain in zip(self.ours, self.plain, strict=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when everything was measured, whatever came out."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with images/ and masks/ (0/255)")
    parser.add_argument("--rounds", type=int, default=3, help="of the time of an epoch")
    parser.add_argument("--epochs", type=int, default=6, help="in each of them")
    parser.add_argument("--minutes", type=float, default=10, help="of the trainings whose Dice is compared")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    given = parser.parse_args(arguments)
    if not (given.data / "images").is_dir():
        print(f"bench: {given.data} has no images/", file=sys.stderr)
        return 1
    started = now()
    (ROOT / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-training-", dir=ROOT / "build") as work:
        try:
            found = _measure(given, Path(work))
        except Missing as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / f"{started:%Y-%m-%d}-training.md"
    path.write_text(_markdown(found, started.strftime("%Y-%m-%d %H:%M"), given))
    path.with_suffix(".json").write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    print(path.read_text())
    return 0


def _measure(given: argparse.Namespace, work: Path) -> dict[str, Any]:
    archive, pairs = _pack(given.data, work / "data.zip")
    server = Ekiben(work / "home", training_python=str(EXPORT_PYTHON))
    (work / "home").mkdir()
    with server.running_on():
        _say("importing")
        dataset = _import(server, archive)
        epochs = Epochs([], [])
        parts = work / "parts.json"
        for number in range(given.rounds):
            _say(f"round {number + 1}: {given.epochs} epochs each")
            training = _train(server, dataset, epochs=given.epochs, patience=0)
            epochs.ours.append(_median([one["seconds"] for one in training["epochs"]]))
            if number == 0:
                parts.write_text(json.dumps(_parts(server, training, pairs)))
            lines = _plain(parts, "--epochs", str(given.epochs))
            epochs.plain.append(_median([line["seconds"] for line in lines if "seconds" in line]))
        _say(f"{given.minutes:g} minutes each")
        ours = _train(server, dataset, max_minutes=given.minutes, epochs=2000, patience=0)
        default = _train(server, dataset)
    plain = _plain(parts, "--minutes", str(given.minutes))
    return {
        "epoch_s": {"ekiben": epochs.ours, "plain": epochs.plain, "ratios": epochs.ratios},
        "minutes": given.minutes,
        "ekiben": _result(ours),
        "default": _result(default),
        "plain": {**plain[-1], "best_validation_dice": max(line["dice"] for line in plain[:-1])},
        "parts": {name: len(samples) for name, samples in json.loads(parts.read_text()).items()}
        if parts.exists()
        else {},
    }


def _pack(data: Path, archive: Path) -> tuple[Path, dict[str, list[str]]]:
    """A ZIP of the first IMAGES pairs, and the two files of each by name."""
    images = sorted((data / "images").iterdir())[:IMAGES]
    pairs = {path.stem: [str(path), str(next((data / "masks").glob(f"{path.stem}.*")))] for path in images}
    with zipfile.ZipFile(archive, "w") as made:
        for image, mask in pairs.values():
            made.write(image, f"images/{Path(image).name}")
            made.write(mask, f"masks/{Path(mask).name}")
    return archive, pairs


def _import(server: Ekiben, archive: Path) -> str:
    status, answer = server.request(
        "POST", "/v1/datasets?name=nuclei", archive.read_bytes(), {"Content-Type": "application/zip"}
    )
    if status != 202:
        raise Missing(f"the dataset was answered with {status}: {answer[:300]!r}")
    brought = json.loads(answer)
    server.wait(brought["job_id"], 300)
    return str(brought["dataset_id"])


def _train(server: Ekiben, dataset: str, **options: Any) -> dict[str, Any]:
    """The training as the API shows it, once it has succeeded."""
    requested = json.dumps({"dataset_id": dataset, "name": "nuclei", **options}).encode()
    status, answer = server.request("POST", "/v1/trainings", requested, {"Content-Type": "application/json"})
    if status != 202:
        raise Missing(f"the training was answered with {status}: {answer[:300]!r}")
    job = server.wait(json.loads(answer)["job_id"], 3600, every_s=1.0)
    training: dict[str, Any] = server.get(f"/v1/trainings/{job['id']}")
    return training


def _parts(server: Ekiben, training: dict[str, Any], pairs: dict[str, list[str]]) -> dict[str, list[list[str]]]:
    """The files of each part of a training."""
    evaluation = server.get(training["artifacts"]["evaluation"])
    found: dict[str, list[list[str]]] = {"train": [], "validation": [], "test": []}
    for sample in evaluation["samples"]:
        found[sample["part"]].append(pairs[sample["name"]])
    return found


def _plain(parts: Path, *options: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [str(EXPORT_PYTHON), "-m", "bench.peers.plain_monai", str(parts), *options],
        cwd=ROOT,
        env=clean_environ(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise Missing(f"the plain script failed: {done.stderr.strip().splitlines()[-1:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _result(training: dict[str, Any]) -> dict[str, Any]:
    job = training["job"]
    return {
        "metrics": training["metrics"],
        "training": training["training"],
        "job": job,
        "epochs": len(training["epochs"]),
    }


def _median(seconds: Sequence[float]) -> float:
    return statistics.median(seconds[1:] or seconds)


def _markdown(found: dict[str, Any], started: str, given: argparse.Namespace) -> str:
    epoch, ours, default, plain = found["epoch_s"], found["ekiben"], found["default"], found["plain"]
    ratio, info = statistics.median(epoch["ratios"]), machine()
    ratios = ", ".join(f"{each:.2f}" for each in epoch["ratios"])
    took = default["training"]["seconds"]
    kept = default["metrics"]["dice"] >= LEAST_DICE and took <= 600
    table = [
        ("", "Ekiben", "plain MONAI", ""),
        ("---", "---:", "---:", "---"),
        (
            f"seconds an epoch with its validation, median of {given.rounds} rounds",
            f"{statistics.median(epoch['ekiben']):.2f}",
            f"{statistics.median(epoch['plain']):.2f}",
            f"ratio {ratio:.2f} ({ratios}); goal at most {MOST_TIMES}: {_verdict(ratio <= MOST_TIMES)}",
        ),
        (
            f"test Dice after {found['minutes']:g} minutes",
            f"{ours['metrics']['dice']:.4f}",
            f"{plain['test_dice']:.4f}",
            f"{ours['epochs']} and {plain['epochs']} epochs",
        ),
        (
            "test Dice with the default options",
            f"{default['metrics']['dice']:.4f}",
            "",
            f"{default['epochs']} epochs in {took:.0f} s; goal {LEAST_DICE} within 600 s: {_verdict(kept)}",
        ),
    ]
    intervals = [[round(value, 4) for value in each["metrics"]["dice_interval"]] for each in (ours, default)]
    sections = [
        f"# Training: {started} UTC",
        f"{info['cpu']}, {info['cores']} cores, commit {info['commit']}, {info['versions']}.",
        f"{IMAGES} nuclei of 256 x 256 in parts {found['parts']}, a U-Net of {plain['parameters']:,} parameters, "
        "batches of 8. Ekiben over its API, as shipped; the script is `bench/peers/plain_monai.py`.",
        "\n".join("| " + " | ".join(row) + " |" for row in table),
        f"95 % intervals of Ekiben's test Dice: {intervals[0]} after {found['minutes']:g} minutes, "
        f"{intervals[1]} by default.",
    ]
    return "\n\n".join(sections) + "\n"


def _verdict(kept: bool) -> str:
    return "met" if kept else "missed"


def _say(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
