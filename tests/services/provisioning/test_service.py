"""Provisioning jobs: one at a time for a model, over any process, and by the first request where that is set."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlmodel import Session, col

from db.job_states import LOST
from db.jobs import JobRecords
from db.tables import Job, now
from ekiben.errors import Conflict, NotFound
from ekiben.ids import LOCAL_OWNER
from ekiben.settings import Settings
from services.app_state import AppState
from services.jobs.submission import JobTerms
from services.jobs.workspace import JobWorkspace
from services.provisioning import service
from services.provisioning.job import ProvisionHandler
from services.rest.app import create_app
from tests import toy_models
from tests.conftest import publish

RED = toy_models.encoded(toy_models.solid((255, 0, 0)))
ERROR = {"code": "weights_unavailable", "message": "no internet"}

Main = Callable[[AppState, httpx.AsyncClient], Awaitable[None]]


def run(home: Path, main: Main, **given: Any) -> None:
    async def whole() -> None:
        app_state = await AppState.start(Settings(home=home, device="cpu", **given))
        app = create_app()
        app.state.app_state = app_state
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
                await main(app_state, client)
        finally:
            await app_state.stop()

    asyncio.run(whole())


def submitted(app_state: AppState) -> list[Job]:
    return list(JobRecords(app_state.database).jobs(LOCAL_OWNER, None, "provision").items)


def fail(app_state: AppState, job_id: str) -> None:
    JobRecords(app_state.database).fail(job_id, ERROR)


def test_the_route_answers_a_durable_job(tmp_path: Path) -> None:
    async def main(app_state: AppState, client: httpx.AsyncClient) -> None:
        first = await client.post("/v1/models/sam_vit_b/provision", json={"priority": 7, "timeout_s": 100})
        assert first.status_code == 202
        job_id = first.json()["job_id"]
        assert first.headers["location"] == f"/v1/jobs/{job_id}"
        assert "idempotency-replayed" not in first.headers
        body = (await client.get(f"/v1/jobs/{job_id}")).json()
        assert (body["kind"], body["operation"], body["state"]) == ("provision", "provision_model", "queued")
        assert (body["parameters"], body["priority"], body["timeout_s"]) == ({"name": "sam_vit_b"}, 7, 100)
        again = await client.post("/v1/models/sam_vit_b/provision?priority=2")
        assert again.json() == first.json()
        assert again.headers["idempotency-replayed"] == "true"
        listed = (await client.get("/v1/jobs?kind=provision")).json()
        assert [job["id"] for job in listed["items"]] == [job_id]
        # Another model has a job of its own; the time of one that names none is that of a large download.
        other = (await client.post("/v1/models/sam_vit_l/provision")).json()["job_id"]
        assert (await client.get(f"/v1/jobs/{other}")).json()["timeout_s"] == service.TIMEOUT_S
        for path, words in (("nope", "no recipe for a model 'nope'"), ("sam_vit_b/", "")):
            refused = await client.post(f"/v1/models/{path}/provision")
            assert refused.status_code == 404
            assert words in refused.json()["error"]["message"]
        assert (await client.post("/v1/models/sam_vit_h/provision", json={"speed": 1})).status_code == 400
        assert len(submitted(app_state)) == 2

    run(tmp_path / "var", main)


def test_requests_at_once_over_processes_make_one_job(tmp_path: Path) -> None:
    async def main(app_state: AppState, client: httpx.AsyncClient) -> None:
        other = await AppState.start(app_state.settings)
        try:
            for _ in range(3):
                found = await asyncio.gather(
                    *(each.provisioning.submit("sam_vit_b", JobTerms()) for each in (app_state, other) * 4)
                )
                assert len({job.id for job, _ in found}) == 1
                assert sum(created for _, created in found) == 1
                fail(app_state, found[0][0].id)  # the next ones make another
            assert len(submitted(app_state)) == 3
        finally:
            await other.stop()

    run(tmp_path / "var", main)


def test_after_a_job_that_is_over_there_is_another(tmp_path: Path) -> None:
    async def main(app_state: AppState, client: httpx.AsyncClient) -> None:
        submit = app_state.provisioning.submit
        ids = []
        for end in ("fail", "cancel", "delete the last", "fail"):
            job, created = await submit("sam_vit_b", JobTerms())
            assert created and job.id not in ids
            ids.append(job.id)
            if end == "fail":
                fail(app_state, job.id)
            else:
                await app_state.jobs.cancel(job.id)
            if end == "delete the last":
                await app_state.jobs.delete(job.id)
        assert (await submit("sam_vit_b", JobTerms()))[1]

    run(tmp_path / "var", main)


def change(app_state: AppState, job_id: str, **values: Any) -> None:
    with Session(app_state.database) as session:
        session.execute(sa.update(Job).where(col(Job.id) == job_id).values(**values))
        session.commit()


def test_a_gateway_whose_clock_is_ahead(tmp_path: Path) -> None:
    """The last job is the one that no other follows, whatever the time is that it says."""

    async def main(app_state: AppState, client: httpx.AsyncClient) -> None:
        submit = app_state.provisioning.submit
        ids: list[str] = []
        for hours in (3, 1, 2, 0):
            job, created = await submit("sam_vit_b", JobTerms())
            assert created and job.id not in ids
            ids.append(job.id)
            change(app_state, job.id, created_at=now() + timedelta(hours=hours))
            again, created = await submit("sam_vit_b", JobTerms(priority=3))
            assert (again.id, created) == (job.id, False)
            fail(app_state, job.id)
        await app_state.jobs.delete(ids[1])  # two ends: of the first and of the last
        job, created = await submit("sam_vit_b", JobTerms())
        assert created and job.id not in ids
        assert (await submit("sam_vit_b", JobTerms()))[0].id == job.id

    run(tmp_path / "var", main)


def test_a_worker_that_lost_the_job_says_nothing_of_the_model(tmp_path: Path) -> None:
    async def main(app_state: AppState, client: httpx.AsyncClient) -> None:
        job, _ = await app_state.provisioning.submit("sam_vit_b", JobTerms())
        records = JobRecords(app_state.database)
        _, [item], _ = records.claim(job.id, "stuck", lambda job: 1)
        records.requeue("stuck", [item.id])
        assert len(records.claim(job.id, "faster", lambda job: 1)[1]) == 1
        with ThreadPoolExecutor(1) as threads:
            workspace = JobWorkspace(app_state.settings, app_state.store, records, "stuck", threads)
            with pytest.raises(Conflict) as lost:
                await ProvisionHandler(workspace, app_state.index)(job, item)
        assert lost.value.code == LOST
        assert app_state.registry.models(LOCAL_OWNER) == []

    run(tmp_path / "var", main)


def test_a_model_that_is_there_is_not_made_again(tmp_path: Path, toy_artifacts: dict[str, Path]) -> None:
    publish(tmp_path / "var", "efficientnet_b0", toy_artifacts["colours"])

    async def main(app_state: AppState, client: httpx.AsyncClient) -> None:
        with pytest.raises(Conflict, match="efficientnet_b0 has a version already"):
            await app_state.provisioning.submit("efficientnet_b0", JobTerms())
        assert (await client.post("/v1/models/efficientnet_b0/provision")).status_code == 409
        assert submitted(app_state) == []

    run(tmp_path / "var", main)


def test_a_bento_has_no_exporter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "export.zoo", None)  # importing it fails

    async def main(app_state: AppState, client: httpx.AsyncClient) -> None:
        with pytest.raises(NotFound, match="is a Bento"):
            await app_state.provisioning.submit("sam_vit_b", JobTerms())
        answer = await client.post("/v1/masks", content=RED)
        assert answer.json()["error"]["message"] == "there is no model sam_vit_b; there is: none yet"

    run(tmp_path / "var", main, provision_on_first_use=True)


ENTRIES = {
    "classify": ("/v1/classify", "efficientnet_b0"),
    "segment": ("/v1/segment", "deeplabv3_resnet50"),
    "masks": ("/v1/masks", "sam_vit_b"),
    "auto masks": ("/v1/masks/auto?model=sam_vit_l", "sam_vit_l"),
    "cutouts": ("/v1/cutouts?model=sam_vit_h", "sam_vit_h"),
    "load": ("/v1/models/sam_vit_b/load", "sam_vit_b"),
    "protocol load": ("/v2/repository/models/sam_vit_b/load", "sam_vit_b"),
}


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_first_request_starts_it(tmp_path: Path, entry: str) -> None:
    path, name = ENTRIES[entry]

    async def main(app_state: AppState, client: httpx.AsyncClient) -> None:
        async def ask(**more: Any) -> httpx.Response:
            return await client.post(path, content=b"" if "load" in path else RED, **more)

        answers = [await ask(), await ask()]
        if "classify" in path:
            answers.append(await ask(headers={"Prefer": "respond-async"}))
            answers.append(await client.post("/classify", files={"image": ("x.png", RED)}))
        (job,) = submitted(app_state)
        assert job.parameters == {"name": name}
        for answer in answers:
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "30"
            error = answer.json()["error"]
            if path.startswith("/v2"):
                assert job.id in error
            else:
                assert (error["code"], error["job_id"]) == ("model_loading", job.id)
                assert name in error["message"]
        # One that failed is not started again by every request: that is for a person to look at.
        fail(app_state, job.id)
        answer = await ask()
        assert answer.status_code == 503
        assert "no internet" in answer.text and f"POST /v1/models/{name}/provision tries again" in answer.text
        assert len(submitted(app_state)) == 1
        assert (await client.post(f"/v1/models/{name}/provision")).status_code == 202
        assert len(submitted(app_state)) == 2
        assert (await ask()).headers["retry-after"] == "30"

    run(tmp_path / "var", main, provision_on_first_use=True)


def test_what_only_looks_starts_nothing(tmp_path: Path, toy_artifacts: dict[str, Path]) -> None:
    publish(tmp_path / "var", "nuclei_unet", toy_artifacts["areas"])

    async def main(app_state: AppState, client: httpx.AsyncClient) -> None:
        for path in ("/v2/models/sam_vit_b/ready", "/v2/models/sam_vit_b", "/v1/models/sam_vit_b", "/v1/models"):
            await client.get(path)
        # A default model is there: the preferred one is not made because of that.
        assert (await client.post("/v1/segment", content=RED)).json()["model"]["name"] == "nuclei_unet"
        # A version that is named, and a model that nobody knows.
        assert (await client.post("/v1/classify?version=2", content=RED)).status_code == 404
        assert (await client.post("/v1/classify?model=other", content=RED)).status_code == 404
        assert submitted(app_state) == []

    run(tmp_path / "var", main, provision_on_first_use=True)


def test_without_the_setting_the_refusal_says_how(tmp_path: Path) -> None:
    async def main(app_state: AppState, client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/masks", content=RED)
        assert answer.status_code == 404
        assert answer.json()["error"]["message"].endswith(
            "POST /v1/models/sam_vit_b/provision downloads and exports it"
        )
        app_state.registry.mark_unavailable("efficientnet_b0", "classify", "no internet yesterday")
        answer = await client.post("/v1/classify", content=RED)
        assert answer.status_code == 503
        assert "no internet yesterday" in answer.json()["error"]["message"]
        assert "POST /v1/models/efficientnet_b0/provision" in answer.json()["error"]["message"]
        assert submitted(app_state) == []

    run(tmp_path / "var", main)
