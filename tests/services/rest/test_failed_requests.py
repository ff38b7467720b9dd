"""A request that fails leaves no prediction, and the API does not promise one."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from ekiben.settings import Settings
from services.app_state import AppState
from services.rest.app import create_app
from tests import toy_models

RED = toy_models.encoded(toy_models.solid((255, 0, 0)))


def test_what_failed_is_answered_and_not_recorded(toy_home: Path) -> None:
    async def main() -> None:
        app_state = await AppState.start(Settings(home=toy_home, device="cpu"))
        app = create_app()
        app.state.app_state = app_state
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
                for path, status in (("classify?model=colours", 400), ("segment?model=areas", 400)):
                    answer = await client.post(f"/v1/{path}", content=RED[: len(RED) // 2])
                    assert answer.status_code == status, answer.text
                assert (await client.get("/v1/predictions")).json()["total"] == 0
                assert list(app_state.store.list("images/")) == []
                assert (await client.post("/v1/classify?model=colours", content=RED)).status_code == 200
                (row,) = (await client.get("/v1/predictions")).json()["items"]
                described = (await client.get("/openapi.json")).json()["components"]["schemas"]["PredictionBody"]
                assert set(row) == set(described["properties"])
                assert described["properties"]["status"]["const"] == row["status"] == "succeeded"
        finally:
            await app_state.stop()

    asyncio.run(main())
