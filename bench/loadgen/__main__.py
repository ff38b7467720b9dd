"""``python -m bench.loadgen``: MLCommons' LoadGen against Ekiben: SingleStream, Offline, Server, accuracy."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.contenders import request
from bench.jobs.run import say
from bench.jobs.server import Ekiben, Others
from bench.loadgen.logs import Row, compare, pack, read
from bench.loadgen.run import run
from bench.loadgen.transports import TRANSPORTS, V1, Transport
from bench.protocols.setup import Report, clients, finish, photos, serving, table
from bench.report import now
from bench.servers import ROOT

SUMMARY, ACCURACY = "mlperf_log_summary.txt", "mlperf_log_accuracy.json"
P90_QUERIES, P99_QUERIES = 64, 662
"""Queries that LoadGen's early stopping needs to state the percentile with 99 % confidence."""


@dataclass(frozen=True)
class Plan:
    """Durations and limits of the runs. ``seconds``: the least of a run."""

    seconds: float = 10.0
    bound_ms: float = 100.0
    """What 99 % of the queries of Server have to keep for the run to be VALID."""
    load: float = 0.6
    """Of the throughput of Offline: the rate at which queries arrive in Server."""
    threads: int = 16
    """Queries in flight at most."""


def scenarios(
    server: Ekiben, transport: Transport, images: Sequence[bytes], plan: Plan, work: Path, report: Report
) -> None:
    """Measure one transport. The rate that Offline reaches determines the arrival rate of Server."""

    def measure(scenario: str, **settings: float) -> Row:
        say(f"{scenario} over {transport.name}")
        shutil.rmtree(folder := work / f"{scenario}-{transport.name}".lower(), ignore_errors=True)
        times = {"min_duration_ms": int(plan.seconds * 1e3), "max_duration_ms": int(plan.seconds * 1e4)}
        before = server.cpu_s()
        with Others(server) as others:
            requested, errors = run(transport, images, plan.threads, folder, scenario, {**times, **settings})
        if errors:
            report.wrong.append(f"{scenario} over {transport.name}: {len(errors)} failed, the first: {errors[0]}")
        report.worst_others = max(report.worst_others, others.cores)
        cpu_ms = (server.cpu_s() - before) / requested * 1e3
        return read((folder / SUMMARY).read_text(), scenario, transport.name, cpu_ms, others.cores)

    single = measure("SingleStream", min_query_count=P90_QUERIES)
    # LoadGen makes as many samples as last at the expected rate, and says INVALID when they were over too early.
    whole = measure("Offline", min_query_count=1, offline_expected_qps=2.2 * single.per_s)
    if not whole.valid:
        whole = measure("Offline", min_query_count=1, offline_expected_qps=1.2 * whole.per_s)
    latency = {"server_target_latency_ns": int(plan.bound_ms * 1e6), "server_target_latency_percentile": 0.99}
    arriving = measure("Server", min_query_count=P99_QUERIES, server_target_qps=plan.load * whole.per_s, **latency)
    for row in (single, whole, arriving):
        report.figures.append(asdict(row))
        report.lines.append(f"| {' | '.join(row.cells())} |")


def accuracy(
    server: Ekiben, transport: Transport, images: Sequence[bytes], plan: Plan, work: Path
) -> tuple[int, list[str]]:
    """The number of different answers, and the samples whose answer differs from that of /v1/classify."""
    say(f"accuracy over {transport.name}")
    expected = [request(f"{server.url}{V1.PATH}", each) for each in images]
    folder = work / f"accuracy-{transport.name}"
    _, errors = run(transport, images, plan.threads, folder, "Offline", {}, "AccuracyOnly")
    wrong = [f"{len(errors)} failed, the first: {errors[0]}"] if errors else []
    wrong += compare(json.loads((folder / ACCURACY).read_text()), expected)
    return len({pack(each) for each in expected}), [f"accuracy over {transport.name}: {each}" for each in wrong]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 when every query was answered, and rightly; an INVALID result is no error of the program."""
    plan = Plan()
    parser = argparse.ArgumentParser(prog="python -m bench.loadgen", description=__doc__)
    parser.add_argument("--seconds", type=float, default=plan.seconds, help="of a run at least; default %(default)s")
    parser.add_argument("--bound-ms", type=float, default=plan.bound_ms, help="of Server's p99; default %(default)s")
    parser.add_argument("--transports", default=",".join(TRANSPORTS), help="default %(default)s")
    parser.add_argument("--out", type=Path, default=ROOT / "bench/results", help="folder of the report")
    parser.add_argument("--keep", action="store_true", help="keep the logs and the data of the run")
    given = parser.parse_args(arguments)
    if unknown := set(transports := given.transports.split(",")) - set(TRANSPORTS):
        parser.error(f"--transports knows {','.join(TRANSPORTS)}, not {','.join(sorted(unknown))}")
    plan = Plan(given.seconds, given.bound_ms)

    def measure(work: Path) -> Report:
        report = Report(now(), "loadgen", "LoadGen: EfficientNet-B0, one image a query")
        images, what = photos(100)
        report.remarks += [
            clients(),
            f"{what}; not stored",
            f"runs of {plan.seconds:g} s or more, {plan.threads} threads in the client; queries of Server arrive at "
            f"{plan.load:g} of the rate of Offline, and p99 has to keep {plan.bound_ms:g} ms",
        ]
        report.lines += table(
            ["scenario", "transport", "queries/s", "p50 ms", "p90", "p99", "CPU ms", "LoadGen says"], []
        )
        checked = []
        with serving(work) as server:
            for name in transports:
                with TRANSPORTS[name](server) as transport:
                    distinct, wrong = accuracy(server, transport, images, plan, work)
                    report.wrong += wrong
                    checked.append(f"{name}: {len(images)} samples, {distinct} different answers, {len(wrong)} wrong")
                    scenarios(server, transport, images, plan, work, report)
        report.lines += [
            "",
            "CPU ms: of the server's processes, per query.",
            "",
            f"Accuracy mode, compared with /v1/classify: {'; '.join(checked)}.",
        ]
        _keep_summaries(work, given.out / f"{report.started:%Y-%m-%d}-loadgen")
        return report

    return finish(measure, "loadgen", given.out, given.keep)


def _keep_summaries(work: Path, folder: Path) -> None:
    """Copy LoadGen's summaries to a folder beside the report."""
    for summary in work.glob(f"*-*/{SUMMARY}"):
        if not summary.parent.name.startswith("accuracy"):
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(summary, folder / f"{summary.parent.name}-{SUMMARY}")


if __name__ == "__main__":
    sys.exit(main())
