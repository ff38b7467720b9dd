"""``python -m bench.jobs``: measure jobs and batches, print the report and write it to ``bench/results``."""

from __future__ import annotations

import argparse
import http.client
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from bench.jobs.batch import interactive, throughput
from bench.jobs.queue import idle, start, submit
from bench.jobs.report import Report
from bench.jobs.run import QUICK, Homes, Part, Plan, say
from bench.report import now
from bench.servers import ROOT, Missing

PARTS: dict[int, tuple[str, Callable[[Homes, Plan], Part]]] = {
    1: ("batch throughput", throughput),
    2: ("submit", submit),
    3: ("submit to start", start),
    4: ("idle worker", idle),
    5: ("requests beside a batch", interactive),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when every part that was selected has valid figures."""
    given = _parse(arguments)
    build = ROOT / "build"  # the disk of the checkout: a folder in memory would make storing cheaper
    build.mkdir(exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="bench-jobs-", dir=build))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # either way the processes are stopped
    started, homes = now(), Homes(work, given.plan, say)
    try:
        homes.make()
        parts = [_measure(number, homes, given.plan) for number in given.only]
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
    report = Report(started, given.plan, given.quick, parts)
    path = report.write(given.out)
    print("\n" + report.markdown())
    print(f"written to {path} and {path.with_suffix('.json').name}", file=sys.stderr)
    return 1 if any(part.wrong for part in parts) else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    listed = "; ".join(f"{number} {name}" for number, (name, _) in PARTS.items())
    parser = argparse.ArgumentParser(prog="python -m bench.jobs", description=__doc__)
    parser.add_argument("--only", default="1,2,3,4,5", help=f"parts such as 1,3: {listed}")
    parser.add_argument("--rounds", type=int, help="of what is compared; default 3")
    parser.add_argument("--quick", action="store_true", help="one small round: does it work, not how fast is it")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="folder of the report")
    parser.add_argument("--keep", action="store_true", help="keep the logs and the data of the run")
    given = parser.parse_args(arguments)
    try:
        given.only = sorted({int(each) for each in given.only.split(",")})
    except ValueError:
        parser.error("--only takes numbers such as 1,3")
    if unknown := set(given.only) - set(PARTS):
        parser.error(f"--only knows {', '.join(map(str, PARTS))}, not {', '.join(map(str, sorted(unknown)))}")
    given.plan = QUICK if given.quick else Plan()
    if given.rounds is not None:
        if given.rounds < 1:
            parser.error("--rounds begins at 1")
        given.plan = replace(given.plan, rounds=given.rounds)
    return given


def _measure(number: int, homes: Homes, plan: Plan) -> Part:
    name, measure = PARTS[number]
    say(f"part {number}: {name}")
    try:
        return measure(homes, plan)
    except (Missing, OSError, http.client.HTTPException) as error:
        say(f"part {number}: invalid: {error}")
        return Part(number, name, wrong=str(error))


if __name__ == "__main__":
    sys.exit(main())
