"""``python -m bench.sam``: measure Segment Anything, print the report and write it to ``bench/results``."""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.contenders import EXPORT_PYTHON, ekiben
from bench.report import now
from bench.sam.contenders import MODEL, Http, Loop, SamContender
from bench.sam.report import Report
from bench.sam.run import EKIBEN, LOOP, PACKAGE, Plan, Row, Run
from bench.servers import ROOT, Missing, clean_environ

LABELS = {PACKAGE: "(a) segment_anything on torch", LOOP: "(b) plain ONNX loop", EKIBEN: "(c) Ekiben over HTTP"}
PHOTO = ROOT.parent / "shared/data/photos/dog.jpg"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when every contender has valid figures."""
    given = _parse(arguments)
    build = ROOT / "build"
    build.mkdir(exist_ok=True)
    work = given.work or Path(tempfile.mkdtemp(prefix="bench-sam-", dir=build))
    work.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way the processes are stopped
    try:
        report = _measure(given.plan, given.photo, work)
    except Missing as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    finally:
        if given.work is None:
            shutil.rmtree(work, ignore_errors=True)
    path = report.write(given.out)
    print("\n" + report.markdown())
    print(f"written to {path} and {path.with_suffix('.json').name}", file=sys.stderr)
    return 1 if any(row.wrong for row in report.rows.values()) else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.sam", description=__doc__)
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--repeats", type=int, help="next prompts in a round; default 20")
    parser.add_argument("--no-crops", action="store_true", help="without automatic masks in a layer of crops")
    parser.add_argument("--quick", action="store_true", help="one small round: does it work, not how fast is it")
    parser.add_argument("--photo", type=Path, default=PHOTO, help="the image; default %(default)s")
    parser.add_argument("--work", type=Path, help="folder of weights and graphs, kept; what it has is not made again")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="folder of the report")
    given = parser.parse_args(arguments)
    if not given.photo.is_file():
        parser.error(f"{given.photo} does not exist: name a JPEG with --photo")
    rounds, repeats, grid = (1, 3, 4) if given.quick else (5, 20, 16)
    crops = not (given.no_crops or given.quick)
    given.plan = Plan(given.rounds or rounds, given.repeats or repeats, crops, grid)
    return given


def _measure(plan: Plan, photo: Path, work: Path) -> Report:
    started = now()
    copied = work / "photo.jpg"
    copied.write_bytes(photo.read_bytes())
    _prepare(work)
    rows = {name: Row(name, label) for name, label in LABELS.items()}
    running: dict[str, SamContender] = {}
    try:
        running[PACKAGE] = Loop("bench.sam.peer_package", work)
        running[LOOP] = Loop("bench.sam.peer_onnx", work)
        running[EKIBEN] = Http(ekiben(work, "embedded", work / "home"))
        run = Run(running, rows, plan, copied, _say)
        run.measure()
    finally:
        for contender in running.values():
            contender.stop()
    size = f"{photo.name}, {run.width} x {run.height}, {copied.stat().st_size / 1e3:.0f} kB"
    return Report(started, plan, size, rows, run.remarks)


def _prepare(work: Path) -> None:
    """Weights, the plain loop's graphs, and Ekiben's home with the model made of the same weights."""
    if not (work / "decoder.onnx").exists():
        _say("making the weights and the plain graphs (a minute)")
        _python("-m", "bench.sam.weights", str(work), home=work / "home")
    if not (work / "home").exists():
        _say("exporting and proving Ekiben's graphs (some minutes)")
        # Beside it first: a home that was interrupted is no home.
        unfinished = work / "home-unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        _python("-m", "export", MODEL, "--checkpoint", str(work / "weights.pth"), home=unfinished)
        unfinished.rename(work / "home")


def _python(*arguments: str, home: Path) -> None:
    if not EXPORT_PYTHON.exists():
        raise Missing(f"{EXPORT_PYTHON} does not exist: the model cannot be exported")
    environ = {**clean_environ(), "EKIBEN_HOME": str(home)}
    done = subprocess.run(
        [str(EXPORT_PYTHON), *arguments], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
        raise Missing(f"python {' '.join(arguments[:3])} ended with status {done.returncode}: {lines[-1]}")


def _say(line: str) -> None:
    print(line.replace(f"{ROOT}/", ""), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
