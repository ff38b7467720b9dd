"""The HTTP application: routes, error shape and OpenAPI. Its platform is set when the process starts."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from ekiben import __version__
from services.rest import error_handlers
from services.rest.openapi import with_error_bodies
from services.rest.routers import (
    artifacts,
    batches,
    bento,
    datasets,
    docs,
    health,
    images,
    inference,
    jobs,
    masks,
    models,
    open_inference,
    predictions,
    trainings,
)

_DESCRIPTION = """Serve vision models on a machine you own.

Send an image as multipart field `file`, as the raw body, or name a stored one with `image_id`; options go into the
query or the form. Every error has the shape `{"error": {"code", "message", "request_id"}}`; under
/v2, the Open Inference Protocol, `{"error": "message"}`."""


def create_app() -> FastAPI:
    """The application without its platform (``app.state.platform``)."""
    app = FastAPI(
        title="Ekiben",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,  # services/rest/routers/docs.py
        redoc_url=None,
        redirect_slashes=False,
    )
    error_handlers.install_error_handlers(app)
    for part in (
        inference,
        masks,
        batches,
        jobs,
        datasets,
        trainings,
        images,
        predictions,
        artifacts,
        models,
        open_inference,
        health,
        bento,
        docs,
    ):
        app.include_router(part.router)

    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = with_error_bodies(made())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


APP = create_app()
"""The one application of a process; ``bentoml serve`` finds it behind the gateway's front."""
