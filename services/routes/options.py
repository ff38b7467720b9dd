"""Options of a request: read from the query and the form fields, described for OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from starlette.datastructures import QueryParams

from ekiben.errors import BadInput
from services.options import OptionsT, check, short

PICTURES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff")


def parse(kind: type[OptionsT], query: QueryParams, fields: Mapping[str, str] | None = None) -> OptionsT:
    """Options from query and form fields together. BadInput names what is wrong, unknown or given twice."""
    return check(kind, gather(query, fields))


def gather(query: QueryParams, fields: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What was given, by name. BadInput for what was given twice."""
    given: dict[str, Any] = {}
    for name, value in (*query.multi_items(), *(fields or {}).items()):
        if given.setdefault(name, value) != value or query.getlist(name)[1:]:
            raise BadInput(f"{short(name)} is given twice")
        if "\0" in value or "\0" in name:
            raise BadInput(f"{short(name)} holds a NUL character")
    return given


def openapi(
    kind: type[BaseModel],
    *,
    file_field: str = "file",
    file_description: str = "The image.",
    raw: tuple[str, ...] = (*PICTURES, "application/dicom"),
) -> dict[str, Any]:
    """What FastAPI cannot see for itself: the options as query parameters, the ways to send a file."""
    schema = kind.model_json_schema()
    properties: dict[str, Any] = {name: _as_text(facts) for name, facts in schema.get("properties", {}).items()}
    parameters = [
        {
            "name": name,
            "in": "query",
            "required": name in schema.get("required", []),
            "description": facts.get("description", ""),
            "schema": {k: v for k, v in facts.items() if k not in ("description", "title")},
        }
        for name, facts in properties.items()
    ]
    binary = {"type": "string", "format": "binary", "description": file_description}
    form = {"type": "object", "properties": {file_field: binary, **properties}}
    content = {"multipart/form-data": {"schema": form}}
    for mime_type in raw:
        content[mime_type] = {"schema": {"type": "string", "format": "binary"}}
    return {"parameters": parameters, "requestBody": {"required": False, "content": content}}


def _as_text(facts: dict[str, Any]) -> dict[str, Any]:
    """A field that is a list is sent as one text, its parts separated by commas, spaces or lines."""
    kinds = [facts, *facts.get("anyOf", [])]
    if any(each.get("type") == "array" for each in kinds):
        return {"type": "string", "description": facts.get("description", "")}
    return facts
