"""/, /docs, /redoc and /openapi.json: the pages of the API.

Script and style of /docs are those that BentoML installs, so that it works offline. ReDoc's script comes from where
EKIBEN_REDOC_URL says.
"""

from __future__ import annotations

import asyncio
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

import bentoml
import orjson
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from ekiben.errors import NotFound
from services.app_state import AppState
from services.rest.responses import json_response

router = APIRouter(include_in_schema=False)

_FOLDER = Path(bentoml.__file__).parent / "_internal" / "server" / "static_content"
_FILES = frozenset({"swagger-ui-bundle.js", "swagger-ui.css", "favicon-light-32x32.png"})
_DAY = {"Cache-Control": "public, max-age=86400"}

_REDOC = """<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><link rel="icon" href="/docs/favicon-light-32x32.png"></head>
<body style="margin: 0">
<redoc spec-url="/openapi.json"></redoc>
<p id="missing" hidden>ReDoc could not be loaded from {script}. <a href="/docs">/docs</a> works without internet.</p>
<script src="{script}" onerror="document.getElementById('missing').hidden = false"></script>
</body>
</html>
"""


@router.get("/")
async def index(request: Request) -> Response:
    if request.headers.get("accept", "").strip().lower().startswith("application/json"):
        places = {"docs": "/docs", "openapi": "/openapi.json", "health": "/healthz"}
        return json_response({"name": request.app.title, "version": request.app.version, **places})
    return RedirectResponse("/docs", 307)


@router.get("/docs")
async def page(request: Request) -> Response:
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title=_title(request),
        swagger_js_url="/docs/swagger-ui-bundle.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="/docs/favicon-light-32x32.png",
    )


@router.get("/openapi.json")
async def document(request: Request) -> Response:
    # The first time takes most of a second, which is too long for the event loop.
    return Response(await asyncio.to_thread(_document, request.app), media_type="application/json")


def _document(app: FastAPI) -> bytes:
    return orjson.dumps(app.openapi())


@router.get("/docs/{name}")
async def asset(name: str) -> Response:
    if name not in _FILES:
        raise HTTPException(404)
    return FileResponse(_FOLDER / name, headers=_DAY)


@router.get("/redoc")
async def redoc(request: Request) -> Response:
    source = _redoc_source(request)
    script = source if _is_address(source) else "/redoc/redoc.standalone.js"
    return HTMLResponse(_REDOC.format(title=_title(request), script=escape(script)))


@router.get("/redoc/redoc.standalone.js")
async def redoc_script(request: Request) -> Response:
    source = _redoc_source(request)
    if _is_address(source):
        raise NotFound(f"ReDoc's script is at {source}")
    return FileResponse(source, media_type="text/javascript", headers=_DAY)


def _redoc_source(request: Request) -> str:
    app_state: AppState = request.app.state.app_state
    if not app_state.settings.redoc_url:
        raise NotFound("this server has no ReDoc (EKIBEN_REDOC_URL); /docs is there")
    return app_state.settings.redoc_url


def _is_address(source: str) -> bool:
    return urlsplit(source).scheme in ("http", "https")


def _title(request: Request) -> str:
    return escape(f"{request.app.title} {request.app.version}")
