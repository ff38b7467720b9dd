"""The Bento endpoints are their routes under /v1, with another name of the file's field."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from services.inference.operations import OPERATIONS
from services.rest.app import create_app
from tests import toy_models
from tests.services.jobs.job_homes import AtWork, at_work, make_home

RED = toy_models.encoded(Image.new("RGB", (16, 12), (220, 10, 10)))
MODELS = {"classify": "colours", "segment": "areas", "masks": "sam_toy", "auto_masks": "sam_toy", "cutouts": "sam_toy"}

Run = Callable[[Callable[[AtWork, httpx.AsyncClient], Awaitable[None]]], None]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("bento") / "template")


@pytest.fixture
def run(template: Path, tmp_path: Path) -> Run:
    def run(main: Callable[[AtWork, httpx.AsyncClient], Awaitable[None]]) -> None:
        async def whole() -> None:
            async with at_work(template, tmp_path) as bench:
                app = create_app()
                app.state.app_state = bench.app_state
                transport = httpx.ASGITransport(app)
                async with httpx.AsyncClient(transport=transport, base_url="http://ekiben") as client:
                    await asyncio.wait_for(main(bench, client), 60)

        asyncio.run(whole())

    return run


def form(**fields: str) -> dict[str, Any]:
    return {"files": {"image": ("red.png", RED, "image/png")}, "data": fields}


def test_a_stored_image_is_refused_on_all_of_them(run: Run) -> None:
    async def main(bench: AtWork, client: httpx.AsyncClient) -> None:
        for name in OPERATIONS:
            answer = await client.post(f"/{name}", **form(model=MODELS[name], image_id="some-id"))
            assert answer.status_code == 400, (name, answer.text)
            assert answer.json()["error"]["message"] == "send a file or image_id, not both"
        assert bench.rows() == {"images": 0, "predictions": 0, "artifacts": 0}

    run(main)


def test_prefer_makes_a_job_on_all_of_them(run: Run) -> None:
    async def main(bench: AtWork, client: httpx.AsyncClient) -> None:
        for name in OPERATIONS:
            answer = await client.post(
                f"/{name}", **form(model=MODELS[name]), headers={"prefer": "respond-async", "idempotency-key": name}
            )
            assert answer.status_code == 202, (name, answer.text)
            assert answer.headers["preference-applied"] == "respond-async"
            assert bench.job(answer.json()["job_id"]).operation == name

    run(main)


def test_a_render_is_answered(run: Run) -> None:
    async def main(bench: AtWork, client: httpx.AsyncClient) -> None:
        drawn = await client.post(
            "/segment", **form(model="areas", render="overlay", store="false"), headers={"accept": "image/png"}
        )
        same = await client.post(
            "/v1/segment?model=areas&render=overlay&store=false", content=RED, headers={"accept": "image/png"}
        )
        assert drawn.headers["content-type"] == "image/png" and drawn.content == same.content
        unstored = await client.post("/segment", **form(model="areas", render="mask", store="false"))
        assert unstored.json()["artifacts"]["mask"].startswith("data:image/png;base64,")

    run(main)


def test_null_is_a_parameter_that_was_not_given(run: Run) -> None:
    async def main(bench: AtWork, client: httpx.AsyncClient) -> None:
        answer = await client.post("/classify", **form(model='"colours"', top_k="null", version="1", store="false"))
        assert answer.status_code == 200, answer.text
        assert answer.json()["predictions"][0]["class_name"] == "red"

    run(main)
