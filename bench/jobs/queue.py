"""Parts 2, 3 and 4: what a submit takes, how soon a job starts, what an idle worker takes."""

from __future__ import annotations

import io
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial

from PIL import Image

from bench import sample_image
from bench.contenders import MODEL
from bench.goals import Goal
from bench.jobs.run import Homes, Part, Plan, percentile, publish, undisturbed
from bench.jobs.server import Ekiben, Others, process_s, seconds_of
from bench.servers import Missing

SUBMIT_MS, GROWTH, START_S, IDLE_SHARE = 15.0, 1.25, 0.5, 0.06
_JOB_S = 60.0


@dataclass(frozen=True, slots=True)
class Taken:
    """Times of one round, in ms."""

    p50_ms: float
    p95_ms: float
    highest_ms: float
    other_cores: float


def submit(homes: Homes, plan: Plan) -> Part:
    """Two servers without workers, one with few jobs in its queue and one with many, measured in turn."""
    part = Part(2, "Submitting")
    data = small_jpeg()
    depths = (plan.few, plan.many)
    rounds: dict[int, list[Taken]] = {depth: [] for depth in depths}
    paths = {depth: homes.queued(depth, data) for depth in depths}
    with ExitStack() as stack:
        servers = {d: stack.enter_context(Ekiben(paths[d], workers="0").running_on()) for d in depths}
        for server in servers.values():
            _submits(server, data, 20)
        for number in range(plan.rounds):
            for depth in depths if number % 2 == 0 else depths[::-1]:
                queued = servers[depth].get("/v1/jobs?state=queued&limit=1")["total"]
                if queued != depth:
                    raise Missing(f"{queued} jobs are queued instead of {depth}")
                requested = partial(_submits, servers[depth], data, plan.submits)
                taken, cores = undisturbed(plan, list(servers.values()), requested)
                this = Taken(percentile(taken, 50), percentile(taken, 95), max(taken), cores)
                rounds[depth].append(this)
                homes.say(f"round {number + 1}, {depth} queued: p50 {this.p50_ms:.2f} ms, p95 {this.p95_ms:.2f} ms")
    medians = {depth: statistics.median(each.p50_ms for each in found) for depth, found in rounds.items()}
    part.lines += ["| jobs queued | p50 ms | p95 | highest |", "|---:|---:|---:|---:|"]
    for depth, found in rounds.items():
        p95 = statistics.median(each.p95_ms for each in found)
        part.lines.append(f"| {depth} | {medians[depth]:.2f} | {p95:.2f} | {max(e.highest_ms for e in found):.1f} |")
    part.lines += [
        "",
        f"{plan.submits} submits a round, one after the other, JPEG of {len(data) / 1e3:.1f} kB, no worker; "
        "each round's jobs are cancelled before the next. The queues were filled beforehand by the same functions in "
        "process, one transaction a job, without waiting for the disk.",
    ]
    disturbed = part.saw([each.other_cores for found in rounds.values() for each in found])
    worst, ratio = max(medians.values()), medians[plan.many] / medians[plan.few]
    text = f"submit: p50 at most {SUBMIT_MS:.0f} ms, with {plan.few} and with {plan.many} jobs queued"
    part.goals.append(Goal(text, worst, "ms", worst <= SUBMIT_MS, disturbed))
    text = f"submit: p50 does not grow from {plan.few} to {plan.many} queued jobs (at most {GROWTH} times)"
    part.goals.append(Goal(text, ratio, "x", ratio <= GROWTH, disturbed))
    part.figures = {str(depth): [asdict(each) for each in found] for depth, found in rounds.items()}
    return part


def small_jpeg() -> bytes:
    """The drawn image, 160 x 120."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(sample_image.jpeg())) as opened:
        opened.resize((160, 120)).save(out, "JPEG", quality=sample_image.QUALITY)
    return out.getvalue()


def _submits(server: Ekiben, data: bytes, count: int) -> list[float]:
    """Milliseconds of each; the jobs are cancelled again."""
    taken, ids = [], []
    for _ in range(count):
        start = time.perf_counter()
        ids.append(server.submit(data, f"model={MODEL}"))
        taken.append((time.perf_counter() - start) * 1e3)
    for id in ids:
        server.cancel(id)
    return taken


def start(homes: Homes, plan: Plan) -> Part:
    """Jobs one after the other on an idle server; then, for information, before a long queue of lesser ones."""
    part = Part(3, "From submit to start")
    data = small_jpeg()
    part.lines += ["| | jobs | p50 s | p95 | highest | submit to end p50 |", "|---|---:|---:|---:|---:|---:|"]
    with Ekiben(homes.first).running_on() as server:
        server.wait(server.submit(data, f"model={MODEL}"), _JOB_S)
        (waits, ends), cores = undisturbed(plan, [server], lambda: _starts(server, data, plan.starts, "priority=5"))
    part.lines.append(_row("idle, one worker", waits, ends))
    part.figures["idle"] = {"start_s": waits, "end_s": ends, "other_cores": cores}
    middle = percentile(waits, 50)
    text = f"submit to start, idle, one worker: p50 at most {START_S} s"
    part.goals.append(Goal(text, middle, "s", middle <= START_S, part.saw([cores])))
    with Ekiben(homes.queued(plan.many, data)).running_on() as server:
        end = time.monotonic() + _JOB_S
        while server.get("/v1/jobs?state=succeeded&limit=1")["total"] < 50:
            if time.monotonic() > end:
                raise Missing("the worker does not work on the long queue")
            time.sleep(0.2)
        waits, ends = _starts(server, data, plan.starts_behind, "priority=9")
        left = server.get("/v1/jobs?state=queued&limit=1")["total"]
    part.lines.append(_row(f"priority 9, with {plan.many} of priority 0 queued", waits, ends))
    part.lines += ["", f"Both as the job's own times say. {left} of the long queue were left at the end."]
    part.figures["behind"] = {"start_s": waits, "end_s": ends, "left": left}
    return part


def _starts(server: Ekiben, data: bytes, count: int, more: str) -> tuple[list[float], list[float]]:
    """Seconds from created to started, and to finished, of jobs each submitted some time after the last one ended."""
    random_ = random.Random(4)
    waits, ends = [], []
    for _ in range(count):
        # The queue is looked at in steps: submits must not always fall on one moment of a step.
        time.sleep(random_.uniform(0.1, 0.6))
        job = server.wait(server.submit(data, f"model={MODEL}&{more}"), _JOB_S, 0.05)
        created, started, finished = (seconds_of(job[name]) for name in ("created_at", "started_at", "finished_at"))
        waits.append(started - created)
        ends.append(finished - created)
    return waits, ends


def _row(text: str, waits: list[float], ends: list[float]) -> str:
    numbers = [percentile(waits, 50), percentile(waits, 95), max(waits), percentile(ends, 50)]
    return f"| {text} | {len(waits)} | {' | '.join(f'{each:.3f}' for each in numbers)} |"


def idle(homes: Homes, plan: Plan) -> Part:
    """A worker on SQLite and, where there is one, a worker on PostgreSQL, both idle at the same time."""
    part = Part(4, "An idle worker")
    part.lines += ["| | share of a core: worker | each window | gateway and launcher |", "|---|---:|---|---:|"]
    data = small_jpeg()
    with ExitStack() as stack:
        servers = {"SQLite": stack.enter_context(Ekiben(homes.first).running_on())}
        try:
            url = stack.enter_context(_postgres())
            home = homes.work / "home-postgres"
            publish(home, EKIBEN_DATABASE_URL=url)
            servers["PostgreSQL"] = stack.enter_context(Ekiben(home, database_url=url).running_on())
        except Missing as error:
            part.lines.append(f"| PostgreSQL | not measured: {error} | | |")
        for server in servers.values():
            server.wait(server.submit(data, f"model={MODEL}"), _JOB_S)
        time.sleep(5)
        with Others(*servers.values()) as others:
            for _ in range(plan.idle_windows):
                _window(part, plan, servers)
    disturbed = part.saw([others.cores])
    for name in servers:
        found = part.figures[name]
        share, rest = statistics.median(found["worker"]), statistics.median(found["rest"])
        each = ", ".join(f"{value * 100:.1f} %" for value in found["worker"])
        part.lines.append(f"| {name} | {share * 100:.1f} % | {each} | {rest * 100:.1f} % |")
        text = f"idle worker on {name}: under {IDLE_SHARE * 100:.0f} % of a core"
        part.goals.append(Goal(text, share * 100, "%", share < IDLE_SHARE, disturbed))
    part.lines += ["", f"Windows of {plan.idle_s:.0f} s, after a job: the model is loaded."]
    return part


def _window(part: Part, plan: Plan, servers: dict[str, Ekiben]) -> None:
    workers = {name: server.worker() for name, server in servers.items()}
    before = {name: (process_s(workers[name]), server.cpu_s()) for name, server in servers.items()}
    begun = time.perf_counter()
    time.sleep(plan.idle_s)
    seconds = time.perf_counter() - begun
    for name, server in servers.items():
        own, family = process_s(workers[name]) - before[name][0], server.cpu_s() - before[name][1]
        found = part.figures.setdefault(name, {"worker": [], "rest": []})
        found["worker"].append(own / seconds)
        found["rest"].append((family - own) / seconds)


@contextmanager
def _postgres() -> Iterator[str]:
    """The URL of an empty database on a PostgreSQL of this run. Missing where there is none."""
    import pytest

    from tests.servers import new_database, postgres

    with ExitStack() as stack:
        try:
            url = stack.enter_context(new_database(stack.enter_context(postgres()).url))
        except (pytest.skip.Exception, pytest.fail.Exception) as error:
            raise Missing(str(error)) from None
        yield url
