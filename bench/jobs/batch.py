"""Parts 1 and 5: throughput of a batch beside the bare loop, and latencies of requests while a batch runs."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import sample_image
from bench.contenders import MODEL, SERVING_PYTHON, Top5, difference, read_top5
from bench.goals import Goal
from bench.jobs.run import DATA, PHOTOS_MODEL, Homes, Part, Plan, percentile, undisturbed
from bench.jobs.server import Ekiben, process_s, seconds_of
from bench.run import CORES
from bench.servers import ROOT, Missing, clean_environ

BARE, PILLOW, OFF, ON = "bare loop", "bare loop, Pillow only", "batch, store=false", "batch, stored"
LEAST, MOST = 0.9, 1.5
LONGEST_GAP_S = 2.0
_BATCH_S = 600.0


@dataclass(frozen=True, slots=True)
class Speed:
    """``cpu_ms``: of the loop's or the worker's process, per item. ``hurdle_s``: from submit's answer to the start."""

    per_s: float
    cpu_ms: float
    other_cores: float
    hurdle_s: float | None = None


def throughput(homes: Homes, plan: Plan) -> Part:
    """A batch by one worker against a loop over the same images, in turn, the server stopped while the loop runs."""
    part = Part(1, "A batch against the bare loop")
    part.lines += ["| | | items/s | lowest-highest | x bare loop | CPU ms an item |", "|---|---|---:|---:|---:|---:|"]
    drawn = homes.work / "drawn"
    drawn.mkdir(exist_ok=True)
    (drawn / "drawn.jpg").write_bytes(sample_image.jpeg())
    _compare(part, homes, plan, MODEL, f"EfficientNet-B0, one image x {plan.items}", drawn, plan.items)
    folder, text = DATA / "imagenet_sample", "MobileNetV2 (imported), 100 photos"
    if homes.artifact(PHOTOS_MODEL).is_dir() and folder.is_dir():
        photos = homes.work / "photos"
        photos.mkdir(exist_ok=True)
        for file in folder.glob("*.jpg"):
            (photos / file.name).write_bytes(file.read_bytes())
        count = plan.photo_repeats * len(list(photos.iterdir()))
        _compare(part, homes, plan, PHOTOS_MODEL, f"{text} x {plan.photo_repeats}", photos, count)
    else:
        part.goals.append(Goal(_goal(text), None, "x", None))
    part.lines += [
        "",
        "Every answer of a batch was compared with the loop's: the same five classes, confidences within",
    ]
    part.lines[-1] += " 1e-3. Of a batch: from the first item running to the last one finished, as its rows say."
    return part


def _goal(text: str) -> str:
    return f"{text}: store=false at least {LEAST} of the bare loop"


def _compare(part: Part, homes: Homes, plan: Plan, model: str, text: str, images: Path, count: int) -> None:
    rounds: dict[str, list[Speed]] = {BARE: [], OFF: [], ON: []}
    if model == MODEL:
        rounds[PILLOW] = []
    expected: list[Top5] = []
    files = sorted(images.iterdir())
    sent = [(file.name, file.read_bytes()) for file in files] * -(-count // len(files))
    for number in range(plan.rounds):
        for name in [each for each in (BARE, PILLOW) if each in rounds]:
            (speed, answers), cores = undisturbed(
                plan, [], partial(_loop, homes.artifact(model), images, count, pillow=name == PILLOW)
            )
            rounds[name].append(Speed(speed.per_s, speed.cpu_ms, cores))
            if name == BARE:
                expected = answers
        with Ekiben(homes.first).running_on() as server:
            fields = {"operation": "classify", "parameters": {"model": model, "top_k": 5}}
            server.wait(server.batch({**fields, "store": "false"}, sent[:64]), _BATCH_S)
            for name in (OFF, ON) if number % 2 == 0 else (ON, OFF):
                requested = {**fields, "store": "true" if name == ON else "false"}
                rounds[name].append(_batch(plan, server, requested, sent[:count], expected))
        found = ", ".join(f"{name} {speeds[-1].per_s:.1f}/s" for name, speeds in rounds.items())
        homes.say(f"round {number + 1}, {text}: {found}")
    medians = {name: statistics.median(each.per_s for each in speeds) for name, speeds in rounds.items()}
    for name, speeds in rounds.items():
        low, high = min(each.per_s for each in speeds), max(each.per_s for each in speeds)
        cpu = statistics.median(each.cpu_ms for each in speeds)
        cells = [f"{medians[name]:.1f}", f"{low:.1f}-{high:.1f}", f"{medians[name] / medians[BARE]:.2f}", f"{cpu:.2f}"]
        part.lines.append(f"| {text if name == BARE else ''} | {name} | {' | '.join(cells)} |")
    share = medians[OFF] / medians[BARE]
    disturbed = part.saw([each.other_cores for name in (BARE, OFF) for each in rounds[name]])
    part.goals.append(Goal(_goal(text), share, "x", share >= LEAST, disturbed))
    part.figures[model] = {name: [asdict(each) for each in speeds] for name, speeds in rounds.items()}


def _loop(artifact: Path, images: Path, count: int, *, pillow: bool) -> tuple[Speed, list[Top5]]:
    # The environment that Ekiben is served from, so that both have the same ONNX Runtime and Pillow.
    command = [str(SERVING_PYTHON), "-m", "bench.jobs.bare_loop", str(artifact), str(images)]
    command += ["--count", str(count), "--threads", str(CORES), *(["--pillow"] if pillow else [])]
    done = subprocess.run(command, cwd=ROOT, env=clean_environ(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Missing(f"the bare loop ended with status {done.returncode}: {done.stderr.strip()[-300:]}")
    found = json.loads(done.stdout)
    speed = Speed(count / found["seconds"], found["cpu_s"] * 1e3 / count, 0.0)
    return speed, [read_top5(each) for each in found["answers"]]


def _batch(
    plan: Plan, server: Ekiben, fields: dict[str, Any], files: Sequence[tuple[str, bytes]], expected: list[Top5]
) -> Speed:
    """Submitted, waited for and checked. CPU time is counted from the submit's answer on."""
    worker = server.worker()

    def once() -> tuple[dict[str, Any], float]:
        id = server.batch(fields, files)
        before = process_s(worker)
        job = server.wait(id, _BATCH_S)
        return job, process_s(worker) - before

    (job, cpu_s), cores = undisturbed(plan, [server], once)
    items = server.items(job["id"])
    for item, (name, _), right in zip(items, files, expected, strict=True):
        if item["state"] != "succeeded" or item["filename"] != name:
            raise Missing(f"item {item['position']} ({item['filename']}) {item['state']}: {item['error']}")
        if reason := difference(right, read_top5(item["result"])):
            raise Missing(f"item {item['position']} ({name}): {reason}")
    start = min(seconds_of(item["started_at"]) for item in items)
    seconds = max(seconds_of(item["finished_at"]) for item in items) - start
    return Speed(len(items) / seconds, cpu_s * 1e3 / len(items), cores, start - seconds_of(job["created_at"]))


@dataclass(frozen=True, slots=True)
class Requested:
    """A client's requests, one after the other. ``background_per_s``: items of the batch that ended meanwhile."""

    p50_ms: float
    p95_ms: float
    other_cores: float
    background_per_s: float | None = None
    longest_gap_s: float | None = None


def interactive(homes: Homes, plan: Plan) -> Part:
    """One client, alone and beside a batch, in turn."""
    part = Part(5, "Requests while a batch runs")
    heads = "| | alone p50 ms | p95 | with a batch p50 | p95 | p95 ratio | batch items/s meanwhile |"
    part.lines += [heads, "|---|---:|---:|---:|---:|---:|---:|"]
    rounds: dict[tuple[str, str], list[Requested]] = {}
    data = sample_image.jpeg()
    with Ekiben(homes.first).running_on() as server:
        image = server.classify(data, f"model={MODEL}")["image"]["id"]
        for number in range(plan.rounds):
            for store in ("true", "false"):
                for way in ("alone", "with") if number % 2 == 0 else ("with", "alone"):
                    found = _requests(plan, server, data, store, image if way == "with" else None)
                    rounds.setdefault((store, way), []).append(found)
                    homes.say(f"round {number + 1}, store={store}, {way}: p95 {found.p95_ms:.1f} ms, {found}")
    for store in ("true", "false"):
        alone, beside = rounds[store, "alone"], rounds[store, "with"]
        p95s = [statistics.median(each.p95_ms for each in found) for found in (alone, beside)]
        p50s = [statistics.median(each.p50_ms for each in found) for found in (alone, beside)]
        speed = statistics.median(each.background_per_s or 0 for each in beside)
        ratio, disturbed = p95s[1] / p95s[0], part.saw([each.other_cores for each in (*alone, *beside)])
        cells = [f"{p50s[0]:.1f}", f"{p95s[0]:.1f}", f"{p50s[1]:.1f}", f"{p95s[1]:.1f}", f"{ratio:.2f}", f"{speed:.0f}"]
        part.lines.append(f"| store={store} | {' | '.join(cells)} |")
        if store == "true":
            text = f"classify p95 while a batch runs: at most {MOST} times its p95 alone"
            part.goals.append(Goal(text, ratio, "x", ratio <= MOST, disturbed))
    part.figures = {f"store={store}, {way}": [asdict(each) for each in found] for (store, way), found in rounds.items()}
    gaps = [each.longest_gap_s or 0 for (_, way), found in rounds.items() if way == "with" for each in found]
    part.lines += [
        "",
        f"One client, {plan.requests} requests, the next when it has its answer; the worker is at nice 19.",
    ]
    part.lines[-1] += f" The batch (stored) ran throughout: of its items one ended every {max(gaps):.2f} s at least."
    return part


def _requests(plan: Plan, server: Ekiben, data: bytes, store: str, image: str | None) -> Requested:
    """``image``: of the batch that runs meanwhile, if one is to."""
    id = ""
    if image is not None:
        fields = {"operation": "classify", "parameters": {"model": MODEL}, "image_ids": [image] * plan.background}
        id = server.batch(fields)
        end = time.monotonic() + 60
        while server.job(id)["counts"]["done"] < 50:
            if time.monotonic() > end:
                raise Missing("the batch did not begin")
            time.sleep(0.1)
    query = f"model={MODEL}&store={store}"
    for _ in range(20):
        server.classify(data, query)

    def once() -> tuple[list[float], float, float]:
        taken, begun = [], time.time()
        for _ in range(plan.requests):
            start = time.perf_counter()
            server.classify(data, query)
            taken.append((time.perf_counter() - start) * 1e3)
        return taken, begun, time.time()

    (taken, begun, ended), cores = undisturbed(plan, [server], once)
    found = (percentile(taken, 50), percentile(taken, 95), cores)
    if not id:
        return Requested(*found)
    if (job := server.job(id))["state"] != "running":
        raise Missing(f"the batch was {job['state']} before the requests had ended: {job['counts']}")
    server.cancel(id)
    time.sleep(2)  # what a worker has claimed is dropped
    ends = sorted(seconds_of(item["finished_at"]) for item in server.items(id) if item["state"] == "succeeded")
    within = [begun, *(each for each in ends if begun <= each <= ended), ended]
    gap = max(after - before for before, after in itertools.pairwise(within))
    if gap > LONGEST_GAP_S:
        raise Missing(f"no item of the batch ended for {gap:.1f} s while requests were answered")
    return Requested(*found, (len(within) - 2) / (ended - begun), gap)
