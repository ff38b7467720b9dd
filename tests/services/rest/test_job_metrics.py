"""/metrics: the jobs of every kind that are not over."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx

from ekiben.settings import Settings
from services.app_state import AppState
from services.jobs.dbos_queue import QUEUES
from services.jobs.submission import JobTerms
from services.rest.app import create_app
from tests.serving import Server, serving


async def submit(app_state: AppState, kind: str) -> str:
    job, _ = await app_state.jobs.submit_single(kind, f"some_{kind}", {}, JobTerms(), given=[kind])
    return job.id


def gauges(text: str) -> dict[tuple[str, str], float]:
    found = re.findall(r'^ekiben_jobs\{kind="(\w+)",state="(\w+)"\} ([0-9.]+)$', text, re.M)
    return {(kind, state): float(value) for kind, state, value in found}


def test_every_kind_of_job_is_counted(tmp_path: Path) -> None:
    async def main() -> None:
        app_state = await AppState.start(Settings(home=tmp_path / "var", workers=0, device="cpu"))
        app = create_app()
        app.state.app_state = app_state
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:

                async def shown() -> dict[tuple[str, str], float]:
                    return gauges((await client.get("/metrics")).text)

                none = {(kind, state): 0.0 for kind in QUEUES for state in ("queued", "running")}
                assert await shown() == none
                ids = {kind: await submit(app_state, kind) for kind in QUEUES}
                await submit(app_state, "training")
                queued = {**none, **{(kind, "queued"): 1.0 for kind in QUEUES}, ("training", "queued"): 2.0}
                assert await shown() == queued
                app_state.jobs._records.claim(ids["import"], "some worker", lambda job: 1)
                assert await shown() == {**queued, ("import", "queued"): 0.0, ("import", "running"): 1.0}
                await app_state.jobs.cancel(ids["training"])
                await app_state.jobs.cancel(ids["import"])
                assert await shown() == {**queued, ("import", "queued"): 0.0, ("training", "queued"): 1.0}
        finally:
            await app_state.stop()

    asyncio.run(main())


def scraped(server: Server) -> set[tuple[float, float]]:
    """What many scrapes say of imports and trainings that wait, over connections that either gateway may take."""
    found = set()
    for _ in range(12):
        shown = gauges(httpx.get(server.url + "/metrics").text)
        found.add((shown["import", "queued"], shown["training", "queued"]))
    return found


def test_two_gateways_and_a_restart_say_the_same(tmp_path: Path) -> None:
    home = tmp_path / "var"

    async def prepare() -> list[str]:
        app_state = await AppState.start(Settings(home=home, device="cpu"))
        try:
            return [await submit(app_state, kind) for kind in ("import", "training", "training")]
        finally:
            await app_state.stop()

    ids = asyncio.run(prepare())
    with serving(home, EKIBEN_GATEWAYS="2") as server:
        assert scraped(server) == {(1.0, 2.0)}
        assert httpx.post(f"{server.url}/v1/jobs/{ids[2]}/cancel").status_code == 200
        assert scraped(server) == {(1.0, 1.0)}
    with serving(home, EKIBEN_GATEWAYS="2") as server:
        assert scraped(server) == {(1.0, 1.0)}
        assert httpx.post(f"{server.url}/v1/jobs/{ids[0]}/cancel").status_code == 200
        assert scraped(server) == {(0.0, 1.0)}
