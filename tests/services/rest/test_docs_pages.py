"""The page of ReDoc: its script from the address of the setting, or none."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx

from ekiben.settings import Settings
from services.app_state import AppState
from services.rest.app import create_app


def pages(folder: Path, **given: str) -> list[httpx.Response]:
    """/redoc and the script that this server would have."""

    async def main() -> list[httpx.Response]:
        app_state = await AppState.start(Settings(home=folder / "var", device="cpu", **given))
        app = create_app()
        app.state.app_state = app_state
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
                return [await client.get("/redoc"), await client.get("/redoc/redoc.standalone.js")]
        finally:
            await app_state.stop()

    return asyncio.run(main())


def test_the_script_is_loaded_from_an_address(tmp_path: Path) -> None:
    address = 'https://mirror.example/redoc.js?a=1&b="2"'
    page, script = pages(tmp_path, redoc_url=address)
    assert '<script src="https://mirror.example/redoc.js?a=1&amp;b=&quot;2&quot;"' in page.text
    assert 'spec-url="/openapi.json"' in page.text
    assert script.status_code == 404
    assert address in script.json()["error"]["message"]


def test_without_an_address_there_is_no_page(tmp_path: Path) -> None:
    for answer in pages(tmp_path, redoc_url=""):
        assert answer.status_code == 404
        assert "EKIBEN_REDOC_URL" in answer.json()["error"]["message"]
