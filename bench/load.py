"""Load: wrk against a server, and the figures it gives."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("post.lua")
INSTALL = "wrk is not installed: apt install wrk, dnf install wrk or brew install wrk (https://github.com/wg/wrk)"
_MARK = "BENCH "


@dataclass(frozen=True, slots=True)
class Figures:
    """One measurement. ``errors`` counts by kind and is empty when every answer was below 400.

    ``cpu_ms``: CPU time of the contender's processes per request; on a busy machine it holds better than the rest.
    ``client_cores``: what wrk itself took of the machine (0 for a loop without a server).
    ``other_cores``: what processes that are neither wrk nor the contender took; they took it from the contender.
    """

    requests: int
    rps: float
    p50_ms: float
    p75_ms: float
    p90_ms: float
    p99_ms: float
    errors: dict[str, int]
    cpu_ms: float = 0.0
    client_cores: float = 0.0
    other_cores: float = 0.0


def wrk_is_missing() -> bool:
    """Whether wrk is not on the PATH."""
    return shutil.which("wrk") is None


def wrk(url: str, image: Path, connections: int, seconds: int) -> Figures:
    """POST the image on ``connections`` connections, each sending the next request when it has its answer."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "20s"]
    command += ["-s", str(SCRIPT), url, "--", str(image)]
    before, start = children_s(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return parse(done.stdout + done.stderr, (children_s() - before) / (time.perf_counter() - start))


def children_s() -> float:
    """CPU seconds of the child processes that have ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def parse(output: str, client_cores: float) -> Figures:
    """Figures from the line that ``post.lua`` prints. Raises RuntimeError with wrk's output when there is none."""
    for line in output.splitlines():
        if line.startswith(_MARK):
            found = json.loads(line.removeprefix(_MARK))
            errors = {kind: count for kind, count in found.pop("errors").items() if count}
            seconds = found.pop("duration_us") / 1e6
            return Figures(**found, rps=found["requests"] / seconds, errors=errors, client_cores=client_cores)
    raise RuntimeError(f"wrk gave no figures: {output.strip()[-300:]}")
