"""One run: contenders are started, their answers checked, then they are measured in turn."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bench.contenders import Contender, Top5, difference, read_top5, request
from bench.load import Figures, children_s, wrk
from bench.servers import IDLE_CORES, ROOT, Missing, Server, busy_s, clean_environ

CORES = 2
"""Threads of the bare loop: what every peer gets too."""

DISTURBED_CORES = 0.1

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how often."""

    seconds: int
    rounds: int
    warm_s: int
    first_warm_s: int
    """Warm-up before the first round of a concurrency: servers that learn to batch do it then (BentoML: every 5 s)."""
    tries: int
    """A measurement during which other processes used more than DISTURBED_CORES is made again, so often at most."""
    concurrencies: tuple[int, ...] = (1, 8, 32)
    """From low to high: after a busy time BentoML's batching makes a lone request wait 10-40 ms, for many seconds."""


@dataclass(slots=True)
class Row:
    """A contender and its measurements. ``wrong``: why its figures are invalid or missing."""

    contender: Contender
    wrong: str = ""
    ready_s: float | None = None
    pss_mb: float | None = None
    idle_cores: float | None = None
    rounds: dict[int, list[Figures]] = field(default_factory=dict)

    def median(self, concurrency: int) -> Figures | None:
        """Figure by figure over the rounds; errors and requests are summed."""
        rounds = self.rounds.get(concurrency)
        if not rounds:
            return None
        names = ("rps", "p50_ms", "p75_ms", "p90_ms", "p99_ms", "cpu_ms", "client_cores", "other_cores")
        errors: dict[str, int] = {}
        for each in rounds:
            for kind, count in each.errors.items():
                errors[kind] = errors.get(kind, 0) + count
        return Figures(
            requests=sum(each.requests for each in rounds),
            errors=errors,
            **{name: statistics.median(getattr(each, name) for each in rounds) for name in names},
        )

    def as_json(self) -> dict[str, object]:
        """The row with every round, for the JSON file."""
        return {
            "key": self.contender.key,
            "label": self.contender.label,
            "wrong": self.wrong,
            "ready_s": self.ready_s,
            "pss_mb": self.pss_mb,
            "idle_cores": self.idle_cores,
            "rounds": {str(at): [asdict(each) for each in rounds] for at, rounds in self.rounds.items()},
        }


def run(rows: Sequence[Row], plan: Plan, artifact: Path, image: Path, say: Say) -> None:
    """Fill in ``rows``. Rows that are already wrong are left as they are."""
    try:
        _prepare(rows, plan, artifact, image, say)
        for concurrency in plan.concurrencies:
            for number in range(plan.rounds):
                # Each round starts with another contender, so that none always follows the same one.
                turn = number % len(rows)
                for row in (*rows[turn:], *rows[:turn]):
                    if not row.wrong:
                        warm_s = plan.warm_s if number else plan.first_warm_s
                        _measure(row, concurrency, warm_s, plan, artifact, image)
                        _log_round(row, concurrency, number, say)
    finally:
        for row in rows:
            if row.contender.server is not None:
                row.contender.server.stop()


def _prepare(rows: Sequence[Row], plan: Plan, artifact: Path, image: Path, say: Say) -> None:
    expected: Top5 | None = None
    failed: dict[Server, str] = {}
    for row in rows:
        if row.wrong:
            continue
        server = row.contender.server
        try:
            if server is None:
                answer, _ = _loop(row.contender, 1, 1, 0, artifact, image)
            else:
                if server in failed:
                    raise Missing(failed[server])
                if not server.running:
                    row.ready_s = server.start()
                answer = request(server.url + row.contender.path, image.read_bytes())
        except Missing as error:
            row.wrong = f"missing: {error}"
            if server is not None:
                failed[server] = str(error)
        except ValueError as error:
            row.wrong = f"invalid: {error}"
        else:
            if expected is None:
                expected = answer
            if reason := difference(expected, answer):
                row.wrong = f"invalid: {reason}"
        say(f"{row.contender.label}: {row.wrong or 'answers right'}")
    for row in rows:
        server = row.contender.server
        if server is not None and server.running:
            row.pss_mb = server.pss_mb()
            row.idle_cores = server.idle_cores(2.0)
            server.stays = server.stays and row.idle_cores < IDLE_CORES
    for row in rows:
        server = row.contender.server
        if server is not None and not server.stays and server.running:
            say(f"{server.name} is not idle without requests: it is started for each of its measurements")
            server.stop()


def _measure(row: Row, concurrency: int, warm_s: int, plan: Plan, artifact: Path, image: Path) -> None:
    contender, best = row.contender, None
    try:
        for _ in range(plan.tries):
            if contender.server is None:
                threads = min(concurrency, CORES)
                _, figures = _loop(contender, threads, plan.seconds, plan.warm_s, artifact, image)
            else:
                url = contender.server.url + contender.path
                figures = _served(contender.server, url, concurrency, warm_s, plan, image)
            if best is None or figures.other_cores < best.other_cores:
                best = figures
            if figures.errors or best.other_cores <= DISTURBED_CORES:
                best = figures
                break
    except (Missing, RuntimeError) as error:
        row.wrong = f"invalid: concurrency {concurrency}: {error}"
        return
    if best is None:
        return
    row.rounds.setdefault(concurrency, []).append(best)
    if best.errors:
        seen = ", ".join(f"{count} {kind}" for kind, count in best.errors.items())
        row.wrong = f"invalid: errors at concurrency {concurrency}: {seen}"
    elif not best.requests:
        row.wrong = f"invalid: no answer within {plan.seconds} s at concurrency {concurrency}"


def _served(server: Server, url: str, concurrency: int, warm_s: int, plan: Plan, image: Path) -> Figures:
    if not server.running:
        if server.stays:
            raise RuntimeError("its process ended by itself")
        server.start()
        warm_s = plan.first_warm_s
    wrk(url, image, concurrency, warm_s)
    server.settle()
    busy, own, start = busy_s(), server.cpu_s(), time.perf_counter()
    figures = wrk(url, image, concurrency, plan.seconds)
    cpu_s, elapsed = server.cpu_s() - own, time.perf_counter() - start
    others = (busy_s() - busy - cpu_s) / elapsed - figures.client_cores
    server.settle()
    if not server.stays:
        server.stop()
    return replace(figures, cpu_ms=cpu_s * 1e3 / max(1, figures.requests), other_cores=max(0.0, others))


def _loop(
    contender: Contender, threads: int, seconds: int, warm_s: int, artifact: Path, image: Path
) -> tuple[Top5, Figures]:
    command = [sys.executable, "-m", contender.module, str(artifact), str(image)]
    command += ["--threads", str(threads), "--seconds", str(seconds), "--warm", str(warm_s)]
    busy, own, start = busy_s(), children_s(), time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=clean_environ(), capture_output=True, text=True, check=False)
    others = (busy_s() - busy - children_s() + own) / (time.perf_counter() - start)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise Missing(f"ended with status {done.returncode}: {lines[-1][:300]}")
    found = json.loads(done.stdout)
    return read_top5(found.pop("answer")), Figures(**found, errors={}, other_cores=max(0.0, others))


def _log_round(row: Row, concurrency: int, number: int, say: Say) -> None:
    if row.wrong:
        say(f"concurrency {concurrency}, round {number + 1}: {row.contender.label}: {row.wrong}")
    else:
        last = row.rounds[concurrency][-1]
        say(
            f"concurrency {concurrency}, round {number + 1}: {row.contender.label}: {last.rps:.1f}/s, "
            f"p50 {last.p50_ms:.1f} ms, p99 {last.p99_ms:.1f} ms (others used {last.other_cores:.2f} cores)"
        )
