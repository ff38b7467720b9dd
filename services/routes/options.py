"""Options of an inference request: query or form fields, one model for checking and for OpenAPI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams

from ekiben.errors import BadInput
from services import defaults

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class InferenceOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int | None = Field(default=None, ge=1, description="Version of the model; the active one by default.")
    image_id: str | None = Field(default=None, description="A stored image instead of a file.")
    store: bool = Field(default=True, description="false: neither row nor files are kept.")


class ClassifyOptions(InferenceOptions):
    model: str = Field(default=defaults.CLASSIFY, pattern=NAME, description="A model that classifies.")
    top_k: int | None = Field(
        default=None, ge=1, description="How many classes to answer. 5, or all where there are fewer."
    )


class SegmentOptions(InferenceOptions):
    model: str = Field(default=defaults.SEGMENT, pattern=NAME, description="A model that segments.")
    render: Literal["mask", "color", "overlay"] | None = Field(
        default=None, description="With Accept: image/png, which picture to answer (mask by default)."
    )


OptionsT = TypeVar("OptionsT", bound=BaseModel)


def parse(kind: type[OptionsT], query: QueryParams, fields: Mapping[str, str] | None = None) -> OptionsT:
    """Options from query and form fields together. BadInput names what is wrong, unknown or given twice."""
    given: dict[str, Any] = {}
    for name, value in (*query.multi_items(), *(fields or {}).items()):
        if given.setdefault(name, value) != value or query.getlist(name)[1:]:
            raise BadInput(f"{_short(name)} is given twice")
        if "\0" in value or "\0" in name:
            raise BadInput(f"{_short(name)} holds a NUL character")
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise BadInput("; ".join(_sentence(e, kind) for e in error.errors()[:5])) from None


def _sentence(error: Any, kind: type[BaseModel]) -> str:
    name = _short(".".join(map(str, error["loc"])))
    if error["type"] == "missing":
        return f"{name} is missing"
    if error["type"] == "extra_forbidden":
        return f"there is no option {name}; there are {', '.join(kind.model_fields)}"
    message: str = error["msg"].removeprefix("Value error, ")
    of = f", not {_short(repr(error['input']))}" if name else ""
    return f"{name}: {message[:1].lower()}{message[1:400]}{of}" if name else message[:400]


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


def openapi(
    kind: type[BaseModel],
    *,
    file_field: str = "file",
    file_description: str = "The image.",
    raw: tuple[str, ...] = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/tiff"),
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
