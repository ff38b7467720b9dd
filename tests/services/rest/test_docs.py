"""The API's description is made beside the event loop."""

from __future__ import annotations

import asyncio

import httpx

from services.rest.app import create_app


def test_the_loop_goes_on_while_openapi_is_made() -> None:
    asyncio.run(_the_loop_goes_on())


async def _the_loop_goes_on() -> None:
    app = create_app()
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        asking = asyncio.ensure_future(client.get("/openapi.json"))
        turns = 0
        while not asking.done():
            await asyncio.sleep(0)
            turns += 1
        # It takes some hundred milliseconds, in which a loop that is held up turns a handful of times.
        assert turns > 50
        assert (await asking).json() == app.openapi()


def test_two_callers_get_the_whole_document() -> None:
    asyncio.run(_two_callers())


async def _two_callers() -> None:
    transport = httpx.ASGITransport(app=create_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        first, second = await asyncio.gather(client.get("/openapi.json"), client.get("/openapi.json"))
    assert first.content == second.content
    assert "ErrorBody" in first.json()["components"]["schemas"]
