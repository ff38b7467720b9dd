"""The HTTP application: routes, error shape and OpenAPI."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock
from typing import Any

from fastapi import FastAPI

from ekiben import __version__
from services.inference.operations import OPERATIONS, Operation
from services.rest import error_handlers
from services.rest.openapi import with_error_bodies, with_operation_names
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
    models,
    open_inference,
    predictions,
    trainings,
)

_DESCRIPTION = """Serve vision models on a machine you own.

Send an image as multipart field `file`, as the raw body, or name a stored one with `image_id`; options go into the
query or the form. Every error has the shape `{"error": {"code", "message", "request_id"}}`; under
/v2, the Open Inference Protocol, `{"error": "message"}`."""


def create_app(operations: Iterable[Operation] | None = None) -> FastAPI:
    """The application, without its ``app.state.app_state``. ``operations``: by default those of the table."""
    rows = tuple(OPERATIONS.values() if operations is None else operations)
    app = FastAPI(
        title="Ekiben",
        version=__version__,
        description=_DESCRIPTION,
        openapi_url=None,  # services/rest/routers/docs.py
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    error_handlers.install_error_handlers(app)
    for router in (
        inference.create_router(rows),
        batches.router,
        jobs.router,
        datasets.router,
        trainings.router,
        images.router,
        predictions.router,
        artifacts.router,
        models.router,
        open_inference.router,
        health.router,
        bento.create_router(rows),
        docs.router,
    ):
        app.include_router(router)

    made, lock = app.openapi, Lock()

    def openapi() -> dict[str, Any]:
        with lock:  # it is made in threads, by routers/docs.py
            if app.openapi_schema is None:
                app.openapi_schema = with_operation_names(with_error_bodies(made()), [row.name for row in rows])
            return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


APP = create_app()
"""The application of a process; ``bentoml serve`` runs it behind the gateway's middleware."""
