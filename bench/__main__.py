"""``python -m bench``: measure, print the report and write it to ``bench/results``."""

from __future__ import annotations

import argparse
import hashlib
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench import sample_image
from bench.contenders import contenders, ekiben, export_artifact, publish
from bench.load import INSTALL, wrk_is_missing
from bench.report import Empty, Report, now
from bench.run import Plan, Row, run
from bench.servers import ROOT, Missing

TOPOLOGIES = ("embedded", "split")
LETTERS = "abcdef"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when every contender that was selected has valid figures."""
    given = _parse(arguments)
    if wrk_is_missing():
        print(INSTALL, file=sys.stderr)
        return 1
    scratch = ROOT / "build"  # the disk of the checkout: a folder in memory would make storing cheaper
    scratch.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="bench-", dir=scratch))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way the servers are stopped
    try:
        report = _measure(given.plan, given.only, work)
    except Missing as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 130
    finally:
        if given.keep:
            print(f"logs and data: {work}", file=sys.stderr)
        else:
            shutil.rmtree(work, ignore_errors=True)
    path = report.write(given.out)
    print("\n" + report.markdown())
    print(f"written to {path} and {path.with_suffix('.json').name}", file=sys.stderr)
    return 1 if any(row.wrong for row in report.rows) else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--seconds", type=int, help="seconds of a measurement (default 6)")
    parser.add_argument("--rounds", type=int, help="measurements of each contender at each concurrency (default 3)")
    parser.add_argument("--only", default=",".join(LETTERS), help="letters such as b,f; (a) is always there")
    parser.add_argument("--quick", action="store_true", help="one round of 2 s: does it work, not how fast is it")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="folder of the report")
    parser.add_argument("--keep", action="store_true", help="keep the logs and the data of the run")
    given = parser.parse_args(arguments)
    given.only = {"a", *(each.strip() for each in given.only.split(","))}
    if unknown := given.only - set(LETTERS):
        parser.error(f"--only knows {','.join(LETTERS)}, not {','.join(sorted(unknown))}")
    seconds, rounds, warm_s, first_warm_s, tries = (2, 1, 1, 1, 1) if given.quick else (6, 3, 2, 6, 3)
    given.plan = Plan(given.seconds or seconds, given.rounds or rounds, warm_s, first_warm_s, tries)
    if given.plan.seconds < 1 or given.plan.rounds < 1:
        parser.error("--seconds and --rounds begin at 1")
    return given


def _measure(plan: Plan, only: set[str], work: Path) -> Report:
    started, data, remarks = now(), sample_image.jpeg(), []
    (file := work / "image.jpg").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()[:12]
    size = f"{sample_image.WIDTH} x {sample_image.HEIGHT}, {len(data) / 1e3:.1f} kB"
    info = f"{size}, JPEG quality {sample_image.QUALITY}, SHA-256 {digest}"
    _say("exporting the model")
    artifact = export_artifact(work)
    rows = [Row(each) for each in contenders(work, artifact) if each.letter in only]
    empty: list[Empty | str] = []
    if "f" in only:
        empty = [_without_models(work, each) for each in TOPOLOGIES]
        remarks = _publish(work, artifact, rows)
    run(rows, plan, artifact, file, _say)
    return Report(started, plan, info, rows, empty, remarks)


def _without_models(work: Path, topology: str) -> Empty | str:
    """Ekiben on an empty home, started twice; the reason when it does not start."""
    server = ekiben(work, topology, work / f"home-empty-{topology}")
    try:
        first = server.start()
        server.stop()
        again = server.start()
        time.sleep(1)
        return Empty(topology, first, again, server.pss_mb(), server.idle_cores(2.0))
    except Missing as error:
        return f"Ekiben {topology}, no model: missing: {error}"
    finally:
        server.stop()


def _publish(work: Path, artifact: Path, rows: Sequence[Row]) -> list[str]:
    """Publish the model for Ekiben; remarks for the report. Ekiben's rows are wrong when it cannot be done."""
    homes = [work / f"home-{each}" for each in TOPOLOGIES]
    _say("publishing the model")
    try:
        publish(work, homes)
    except Missing as error:
        for row in rows:
            if row.contender.letter == "f":
                row.wrong = f"missing: {error}"
        return []
    files = [found.read_bytes() for found in homes[0].rglob("model.onnx")]
    if (artifact / "model.onnx").read_bytes() not in files:
        return ["**Ekiben's model.onnx is not byte for byte the one that the others got.**"]
    return []


def _say(line: str) -> None:
    print(line.replace(f"{ROOT}/", ""), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
