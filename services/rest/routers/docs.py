"""/docs: the page of the API. Script and style are those that BentoML installs, so that it works offline."""

from __future__ import annotations

from pathlib import Path

import bentoml
from fastapi import APIRouter, HTTPException, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse, RedirectResponse, Response

router = APIRouter(include_in_schema=False)

_FOLDER = Path(bentoml.__file__).parent / "_internal" / "server" / "static_content"
_FILES = frozenset({"swagger-ui-bundle.js", "swagger-ui.css", "favicon-light-32x32.png"})


@router.get("/")
async def index() -> Response:
    return RedirectResponse("/docs", 307)


@router.get("/docs")
async def page(request: Request) -> Response:
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=f"{request.app.title} {request.app.version}",
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="/docs/favicon-light-32x32.png",
    )


@router.get("/docs/{name}")
async def asset(name: str) -> Response:
    if name not in _FILES:
        raise HTTPException(404)
    return FileResponse(_FOLDER / name, headers={"Cache-Control": "public, max-age=86400"})
