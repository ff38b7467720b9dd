"""The parts of the OpenAPI document that FastAPI cannot derive: options, file uploads and errors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from services.rest.async_requests import AsyncRequestOptions
from services.schemas.body import ErrorBody
from services.schemas.open_inference import InferBody, ProtocolError


def with_error_bodies(schema: dict[str, Any]) -> dict[str, Any]:
    """``schema`` with Ekiben's error bodies in place of FastAPI's."""
    components = schema.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        components.pop(name, None)
    for body in (ErrorBody, InferBody):  # no route names them as its response model
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


def with_operation_names(schema: Any, names: list[str]) -> Any:
    """``schema`` with the names of the operations where ``OperationName`` stands."""
    if isinstance(schema, dict):
        if schema.get("format") == "operation":
            return {**{key: value for key, value in schema.items() if key != "format"}, "enum": names}
        return {key: with_operation_names(value, names) for key, value in schema.items()}
    if isinstance(schema, list):
        return [with_operation_names(value, names) for value in schema]
    return schema


IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff")


def openapi(
    kind: type[BaseModel],
    *,
    file_field: str = "file",
    file_description: str = "The image.",
    raw: tuple[str, ...] = (*IMAGE_TYPES, "application/dicom"),
) -> dict[str, Any]:
    """The ``openapi_extra`` of a route: the options ``kind`` as query parameters and form fields, and the ways to
    send a file. ``raw``: media types of a file sent as the body."""
    schema = kind.model_json_schema()
    properties: dict[str, Any] = {name: _as_text(info) for name, info in schema.get("properties", {}).items()}
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", []),
            "description": info.get("description", ""),
            "schema": {k: v for k, v in info.items() if k not in ("description", "title")},
        }
        for name, info in properties.items()
    ]
    binary = {"type": "string", "format": "binary", "description": file_description}
    form = {"type": "object", "properties": {file_field: binary, **properties}}
    content = {"multipart/form-data": {"schema": form}}
    for mime_type in raw:
        content[mime_type] = {"schema": {"type": "string", "format": "binary"}}
    return {"parameters": parameters, "requestBody": {"required": False, "content": content}}


def _as_text(info: dict[str, Any]) -> dict[str, Any]:
    """The schema of a form field: a list is sent as one text, separated by commas, spaces or lines."""
    kinds = [info, *info.get("anyOf", [])]
    if any(each.get("type") == "array" for each in kinds):
        return {"type": "string", "description": info.get("description", "")}
    return info


IDEMPOTENCY = {
    "in": "header",
    "name": "Idempotency-Key",
    "required": False,
    "description": "The same key again gives the first job, not a second one.",
    "schema": {"type": "string", "maxLength": 255},
}
"""The OpenAPI parameter of the header."""


def openapi_job(described: dict[str, Any]) -> dict[str, Any]:
    """``described``, the ``openapi_extra`` of a route, with the parameters of requests that may become jobs."""
    header = {"in": "header", "required": False}
    headers = [
        {
            **header,
            "name": "Prefer",
            "description": "respond-async: answer 202 with a job at once.",
            "schema": {"type": "string"},
        },
        IDEMPOTENCY,
    ]
    properties = AsyncRequestOptions.model_json_schema()["properties"]
    queries = [
        {
            "in": "query",
            "required": False,
            "name": name,
            "description": info["description"],
            "schema": {k: v for k, v in info.items() if k not in ("description", "title")},
        }
        for name, info in properties.items()
    ]
    return {**described, "parameters": [*described["parameters"], *queries, *headers]}
