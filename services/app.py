"""The HTTP application: routes, error shape and OpenAPI. Its platform is set when the process starts."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from ekiben import __version__
from services import errors
from services.oip.wire import InferBody, ProtocolError
from services.routes import (
    artifacts,
    batches,
    bento,
    datasets,
    docs,
    health,
    images,
    jobs,
    masks,
    models,
    oip,
    predictions,
    trainings,
    vision,
)
from services.wire import ErrorBody

_DESCRIPTION = """Serve vision models on a machine you own.

Send a picture as multipart field `file`, as the raw body, or name a stored one with `image_id`; options go into the
query or the form. Every error has the shape `{"error": {"code", "message", "request_id"}}`; under
/v2, the Open Inference Protocol, `{"error": "message"}`."""


def create_app() -> FastAPI:
    """The application without its platform (``app.state.platform``)."""
    app = FastAPI(
        title="Ekiben",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,  # services/routes/docs.py
        redoc_url=None,
        redirect_slashes=False,
    )
    errors.install(app)
    for part in (
        vision,
        masks,
        batches,
        jobs,
        datasets,
        trainings,
        images,
        predictions,
        artifacts,
        models,
        oip,
        health,
        bento,
        docs,
    ):
        app.include_router(part.router)

    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _with_errors(made())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _with_errors(schema: dict[str, Any]) -> dict[str, Any]:
    """Put Ekiben's error bodies where FastAPI documents its own."""
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    for body in (ErrorBody, InferBody):  # named where FastAPI does not see them
        own = body.model_json_schema(ref_template="#/components/schemas/{model}")
        components.update(own.pop("$defs"))
        components[body.__name__] = own
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    protocol = {"application/json": {"schema": {"$ref": "#/components/schemas/ProtocolError"}}}
    components["ProtocolError"] = ProtocolError.model_json_schema()
    for path, operations in schema["paths"].items():
        shape = protocol if path == "/v2" or path.startswith("/v2/") else content
        for operation in operations.values():
            responses = operation["responses"]
            responses.pop("422", None)
            responses.setdefault("4XX", {"description": "Refused: the message says why.", "content": shape})
            responses.setdefault("503", {"description": "Not now; see Retry-After.", "content": shape})
    return schema


APP = create_app()
"""The one application of a process; ``bentoml serve`` finds it behind the gateway's front."""
