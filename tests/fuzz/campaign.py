"""One run: requests from a seed, a bounded number at once, everything watched, and what was wrong at the end."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.fuzz import home
from tests.fuzz.drafts import Call
from tests.fuzz.grpc_requests import GrpcRequests
from tests.fuzz.http_requests import HttpRequests
from tests.fuzz.known import Known
from tests.fuzz.sending import Answer, GrpcConnection, HttpConnection
from tests.fuzz.watching import GROWTH_MB, SILENCE_S, LivezWatch, LogWatch, MemoryWatch, is_fault
from tests.serving import Server

GRPC_SHARE = 0.25
BAD_GRPC = {"INTERNAL", "UNKNOWN", "DATA_LOSS"}
BEFORE_VALIDATION = {"bad_request", "method_not_allowed", "unsupported_media_type", ""}
"""Error codes of requests that may have been refused by their form alone; every other error is of the work itself."""


@dataclass
class Violation:
    what: str
    call: Call | None = None
    answer: Answer | None = None

    def record(self, seed: int) -> dict[str, Any]:
        """As JSON: enough to send the request again."""
        made: dict[str, Any] = {"what": self.what, "seed": seed}
        if self.call is not None:
            made |= {
                "index": self.call.index,
                "route": self.call.route,
                "method": self.call.method,
                "notes": self.call.notes,
            }
            made |= {"target": self.call.target.decode(), "streams": self.call.streams}
            made["headers"] = [[n.decode("latin-1"), v.decode("latin-1")] for n, v in self.call.headers]
            made["body"] = base64.b64encode(self.call.body).decode()
        if self.answer is not None:
            made |= {"status": self.answer.status, "answer": self.answer.body[:2000].decode(errors="replace")}
        return made


def call_from(record: dict[str, Any]) -> Call:
    """The request of a record."""
    headers = tuple((n.encode("latin-1"), v.encode("latin-1")) for n, v in record["headers"])
    body = base64.b64decode(record["body"])
    target = record["target"].encode()
    return Call(
        record["index"], record["route"], record["method"], target, headers, body, record["notes"], record["streams"]
    )


@dataclass
class Report:
    seed: int
    sent: int = 0
    seconds: float = 0.0
    by_route: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    slowest: list[tuple[float, int, str]] = field(default_factory=list)
    past: int = 0
    violations: list[Violation] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """A line per route, and the figures."""
        lines = [f"{'route':62} {'sent':>6} {'2xx':>6} {'past':>6}  statuses"]
        for route, counts in sorted(self.by_route.items()):
            shown = "  ".join(f"{k} {v}" for k, v in counts.most_common() if k not in ("sent", "good", "past"))
            lines.append(f"{route:62} {counts['sent']:6} {counts['good']:6} {counts['past']:6}  {shown}")
        lines.append(f"slowest: {[(round(s, 2), i, r) for s, i, r in sorted(self.slowest, reverse=True)[:8]]}")
        share = self.past / max(1, self.sent)
        lines.append(f"seed {self.seed}: {self.sent} requests in {self.seconds:.0f} s, {share:.0%} past validation")
        lines += [f"{name}: {value}" for name, value in self.figures.items()]
        lines.append(f"{len(self.violations)} violations")
        lines += [
            f"  {v.what[:300]}" + (f"  [{v.call.index} {v.call.route}]" if v.call else "") for v in self.violations[:60]
        ]
        return "\n".join(lines)


def _shapeless(answer: Answer) -> bool:
    """Whether a refusal is not in the shape of all errors. Headers that are too large, and what is no HTTP at all, are
    refused before there is a request."""
    refused = isinstance(answer.status, int) and 400 <= answer.status < 500 and answer.status != 431
    return refused and not answer.code and answer.body != b"Invalid HTTP request received."


class Campaign:
    """Sends requests ``first`` to ``first + count`` of ``seed`` to a server, for ``minutes`` at most."""

    def __init__(self, server: Server, known: Known, document: dict[str, Any], seed: int, folder: Path) -> None:
        self.server, self.known, self.folder = server, known, folder
        self.http, self.grpc = HttpRequests(document, known), GrpcRequests(known)
        self.report = Report(seed)
        self.in_flight: dict[int, Call] = {}
        self.recent: list[tuple[float, Call]] = []

    def call(self, index: int) -> Call:
        """Request ``index`` of the seed."""
        rng = random.Random(f"{self.report.seed}/{index}")
        return (self.grpc if rng.random() < GRPC_SHARE else self.http).call(index, rng)

    async def send(self, first: int, count: int, minutes: float, concurrency: int, only_http: bool = False) -> None:
        """Send them. Violations of single answers are noted at once."""
        address = urlsplit(self.server.url)
        numbers = iter(range(first, first + count))
        end = time.monotonic() + minutes * 60
        log = LogWatch(self.server, is_fault)

        async def one() -> None:
            http = HttpConnection(str(address.hostname), int(address.port or 0))
            grpc = GrpcConnection(self.server.grpc)
            for index in numbers:
                if time.monotonic() > end or self.server.process.poll() is not None:
                    break
                call = self.call(index)
                started = time.monotonic()
                self.in_flight[index] = call
                answer = await (grpc if call.method == "GRPC" else http).send(call, self.request_id(index))
                del self.in_flight[index]
                self.judge(call, answer, time.monotonic() - started)
            http.close()
            await grpc.close()

        async def read_log() -> None:
            while True:
                await asyncio.sleep(2)
                for line in log.faults():
                    self._log_fault(line)

        reading = asyncio.ensure_future(read_log())
        start = time.monotonic()
        await asyncio.gather(*(one() for _ in range(concurrency)))
        self.report.seconds += time.monotonic() - start
        reading.cancel()
        await asyncio.sleep(0.5)
        for line in log.faults():
            self._log_fault(line)

    def request_id(self, index: int) -> str:
        return f"fuzz-{self.report.seed}-{index}"

    def judge(self, call: Call, answer: Answer, seconds: float) -> None:
        """Count the answer, and note what is wrong with it."""
        report, counts = self.report, self.report.by_route[call.route]
        report.sent += 1
        counts["sent"] += 1
        counts[str(answer.status) if not answer.code else f"{answer.status}:{answer.code}"] += 1
        if answer.good:
            counts["good"] += 1
            self._remember(call, answer)
        if answer.good or answer.code not in BEFORE_VALIDATION | {"oip"} or answer.status in (503, 504):
            counts["past"] += 1
            report.past += 1
        report.slowest.append((seconds, call.index, call.route))
        if len(report.slowest) > 200:
            report.slowest = sorted(report.slowest, reverse=True)[:20]
        if answer.broken:
            self._violation(f"no answer: {answer.broken}", call, answer)
        elif answer.status in BAD_GRPC or (
            isinstance(answer.status, int) and answer.status >= 500 and answer.status not in (501, 503, 504)
        ):
            self._violation(f"{answer.status} {answer.body[:200]!r}", call, answer)
        elif call.method not in ("GRPC", "HEAD") and _shapeless(answer):
            self._violation(f"an error of another shape: {answer.status} {answer.body[:200]!r}", call, answer)

    def _violation(self, what: str, call: Call | None = None, answer: Answer | None = None) -> None:
        violation = Violation(what, call, answer)
        self.report.violations.append(violation)
        number = len(self.report.violations)
        if number <= 200:
            file = self.folder / f"violation-{self.report.seed}-{number}.json"
            file.write_text(json.dumps(violation.record(self.report.seed), indent=1))

    def _log_fault(self, line: str) -> None:
        call = None
        for word in line.split('"'):
            prefix = f"fuzz-{self.report.seed}-"
            if word.startswith(prefix) and word[len(prefix) :].isdigit():
                call = self.call(int(word[len(prefix) :]))  # its ids may differ, where they were added in the run
        self._violation(f"log: {line[:500]} ... {line[-2500:]}" if len(line) > 3000 else f"log: {line}", call)

    def _remember(self, call: Call, answer: Answer) -> None:
        """Ids that may be asked for, and removed, later."""
        if call.route in ("POST /v1/images", "POST /v1/classify", "POST /v1/segment") and isinstance(
            tree := answer.json, dict
        ):
            if tree.get("id"):
                self.known.add("image" if call.route == "POST /v1/images" else "prediction", tree["id"])
            for link in (tree.get("artifacts") or {}).values():
                if isinstance(link, str) and link.startswith("/v1/artifacts/"):
                    self.known.add("artifact", link.rsplit("/", 1)[1])
        if answer.status == 202 and isinstance(tree := answer.json, dict) and "job_id" in tree:
            self.known.add("job", tree["job_id"])
            if "dataset_id" in tree:
                self.known.add("dataset", tree["dataset_id"])

    # ---- before and after ----

    def run(self, first: int, count: int, minutes: float, concurrency: int) -> Report:
        """The whole run: warm up, measure the calm machine, send, and look at what is left."""
        with self.server.client() as client:
            before = home.right_answers(client)
            memory, livez = MemoryWatch(self.server), LivezWatch(self.server)
            try:
                self._run(client, memory, livez, first, count, minutes, concurrency)
                after = home.right_answers(client)
                for name in [name for name in before if before[name] != after[name]]:
                    self._violation(f"{name} is answered otherwise than before: {str(after[name])[:300]}")
                self._jobs_end(client)
            finally:
                memory.stop()
                livez.stop()
        return self.report

    def _run(
        self,
        client: httpx.Client,
        memory: MemoryWatch,
        livez: LivezWatch,
        first: int,
        count: int,
        minutes: float,
        concurrency: int,
    ) -> None:
        report = self.report
        time.sleep(3)
        calm = livez.longest()
        warm = min(300, max(20, count // 20))
        asyncio.run(self.send(10**9, warm, 2, concurrency))
        time.sleep(1)
        memory.baseline()
        processes = {*self.server.worker_pids(), *self.server.job_worker_pids()}
        limit = SILENCE_S * max(1.0, calm / 0.1)
        since = time.monotonic()
        asyncio.run(self.send(first, count, minutes, concurrency))
        for at, seconds in livez.over(limit, since):
            self._violation(f"/livez was silent for {seconds:.2f} s, {at - since:.1f} s after the start")
        growth = memory.peak_mb - memory.start_mb
        report.figures |= {
            "longest /livez (s)": f"{livez.longest(since):.3f}, calm {calm:.3f}, limit {limit:.2f}, "
            f"{len(livez)} answers",
            "memory (MB)": f"start {memory.start_mb:.0f}, peak {memory.peak_mb:.0f}, end {memory.now():.0f}",
        }
        report.figures["largest rises of memory"] = ", ".join(memory.steps(since))
        if growth > GROWTH_MB:
            self._violation(f"memory grew by {growth:.0f} MB: {memory.by_process}")
        if self.server.process.poll() is not None:
            self._violation("the server ended")
        elif gone := processes - {*self.server.worker_pids(), *self.server.job_worker_pids()}:
            self._violation(f"processes {gone} ended")

    def _jobs_end(self, client: httpx.Client) -> None:
        """Trainings are cancelled; every other job ends by itself."""
        end = time.monotonic() + 600
        while time.monotonic() < end:
            left = [job for state in ("queued", "running") for job in _jobs(client, state)]
            for job in left:
                if job["kind"] == "training":
                    client.post(f"/v1/jobs/{job['id']}/cancel")
            if not left:
                return
            time.sleep(1)
        self._violation(f"jobs did not end: {[(job['id'], job['kind'], job['state']) for job in left][:5]}")


def _jobs(client: httpx.Client, state: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = client.get("/v1/jobs", params={"state": state, "limit": 100}).json()["items"]
    return items
