"""What is watched during a run: answers of /livez, memory and processes of the server, its log."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from tests.serving import ROOT, Server

SILENCE_S = 1.0
GROWTH_MB = 500.0


class LivezWatch:
    """Runs the probe, and keeps its lines."""

    def __init__(self, server: Server) -> None:
        address = urlsplit(server.url)
        command = [sys.executable, "-m", "tests.fuzz.livez_probe", str(address.hostname), str(address.port)]
        command.append(str((server.worker_pids() or [server.process.pid])[0]))
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        self._lines: list[dict[str, float]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            self._lines.append(json.loads(line))

    def __len__(self) -> int:
        return len(self._lines)

    def longest(self, since: float = 0.0) -> float:
        """Seconds of the slowest answer after ``since`` (monotonic)."""
        return max((line["seconds"] for line in self._lines if line["at"] >= since), default=0.0)

    def over(self, limit_s: float, since: float = 0.0) -> list[tuple[float, float]]:
        """(at, seconds) of answers that took longer, or were none. The time in which the probe or the
        server did not get a processor is taken off."""
        found = []
        for number, line in enumerate(self._lines):
            if line["at"] < since:
                continue
            after = self._lines[number + 1]["late"] if number + 1 < len(self._lines) else 0.0
            seconds = line["seconds"] - max(line["late"], after, line["waited"])
            if seconds > limit_s or line["status"] != 200:
                found.append((line["at"], line["seconds"]))
        return found

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()


class MemoryWatch:
    """Memory of all processes of the server (MB, shared pages by their share) once a second, and which they are."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._stop = threading.Event()
        self.start_mb = 0.0
        self.samples: list[tuple[float, float]] = []
        self.by_process: dict[str, float] = {}
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._stop.wait(1.0):
            self.samples.append((time.monotonic(), self.now()))

    def now(self) -> float:
        """MB of all processes together."""
        parts = {}
        for pid in self._server.pids():
            try:
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                name = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[-60:]
            except OSError:
                continue
            line = next((line for line in text.splitlines() if line.startswith("Pss:")), "Pss: 0")
            parts[f"{pid} {name}"] = int(line.split()[1]) * 1024 / 1e6
        total = sum(parts.values())
        if total >= max((mb for _, mb in self.samples), default=0.0):
            self.by_process = parts
        return total

    def baseline(self) -> None:
        """What is held now, and the most that was held so far, is where growth begins."""
        self.start_mb = max([self.now(), *(mb for _, mb in self.samples[-20:])])
        self.samples.clear()

    def steps(self, since: float) -> list[str]:
        """The three largest rises from one second to the next, and when they were."""
        pairs = zip(self.samples, self.samples[1:], strict=False)
        rises = sorted(((after - before, at) for (_, before), (at, after) in pairs), reverse=True)
        return [f"+{rise:.0f} MB after {at - since:.0f} s" for rise, at in rises[:3]]

    @property
    def peak_mb(self) -> float:
        return max((mb for _, mb in self.samples), default=self.start_mb)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


class LogWatch:
    """New lines of the log that say that something is wrong."""

    def __init__(self, server: Server, is_fault: Callable[[str], bool]) -> None:
        self._log, self._at, self._is_fault = server.log, server.log.stat().st_size, is_fault

    def faults(self) -> list[str]:
        """Lines since the last call that are faults."""
        with self._log.open("rb") as log:
            log.seek(self._at)
            data = log.read()
        whole = data.rfind(b"\n") + 1
        self._at += whole
        lines = data[:whole].decode(errors="replace").splitlines()
        # A traceback that is no JSON has its error in one of the lines below it.
        return [
            line if line.startswith("{") else "\n".join(lines[number : number + 40])
            for number, line in enumerate(lines)
            if self._is_fault(line)
        ]


def is_fault(line: str) -> bool:
    """Whether a line of the log is a traceback or an error."""
    lost = "never retrieved" in line or "was never awaited" in line
    return (
        lost or "Traceback (most recent call last)" in line or '"level":"error"' in line or '"level":"critical"' in line
    )
