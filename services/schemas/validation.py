"""Checking of options and JSON from requests."""

from __future__ import annotations

import asyncio
import reprlib
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import BaseModel, BeforeValidator, ValidationError, ValidationInfo, WithJsonSchema

from ekiben.errors import BadInput, TooLarge

MAX_JSON = 4_000_000
"""Characters of an option in JSON."""

_PARSE_IN_THREAD = 64_000
"""Characters of JSON: parsing more takes over a millisecond."""

_SHOWN = reprlib.Repr()
_SHOWN.maxlevel, _SHOWN.maxlist, _SHOWN.maxdict = 4, 20, 20

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"


OptionsT = TypeVar("OptionsT", bound=BaseModel)


def check(kind: type[OptionsT], given: Mapping[str, Any]) -> OptionsT:
    """The options ``kind`` from values by name. BadInput names what is wrong or unknown."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise BadInput("; ".join(_sentence(e, kind) for e in error.errors()[:5])) from None


def _sentence(error: Any, kind: type[BaseModel]) -> str:
    name = short(".".join(map(str, error["loc"])))
    if error["type"] == "missing":
        return f"{name} is missing"
    if error["type"] == "extra_forbidden":
        return f"there is no option {name}; there are {', '.join(kind.model_fields)}"
    message: str = error["msg"].removeprefix("Value error, ")
    of = f", not {short(_shown(error['input']))}" if name else ""
    return f"{name}: {message[:1].lower()}{message[1:400]}{of}" if name else message[:400]


def _shown(value: Any) -> str:
    """The beginning of ``repr(value)``: of a large or deeply nested value the whole takes long, or fails."""
    return repr(value[:100]) if isinstance(value, str) else _SHOWN.repr(value)


def short(text: str) -> str:
    """``text`` cut to 80 characters, for messages."""
    return text if len(text) <= 80 else f"{text[:77]}..."


class JsonOption:
    """Marks an option that may come as JSON text."""


def _parse_option(value: Any, info: ValidationInfo) -> Any:
    return parse_json(info.field_name or "", value) if isinstance(value, str) else value


JsonText = Annotated[
    Any,
    BeforeValidator(_parse_option),
    JsonOption(),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]}),
]
"""The type of an option that is JSON text in a query or a form, and a value in a JSON body or in Python."""


def json_options(kind: type[BaseModel]) -> tuple[str, ...]:
    """The options of ``kind`` that may come as JSON text."""
    return tuple(
        name
        for name, field in kind.model_fields.items()
        if any(isinstance(mark, JsonOption) for mark in field.metadata)
    )


async def read_json_options(kind: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given``, with long JSON texts parsed in a thread, so that they do not block the event loop.

    BadInput, TooLarge.
    """
    read = dict(given)
    for name in json_options(kind):
        if isinstance(text := read.get(name), str) and len(text) > _PARSE_IN_THREAD:
            read[name] = await asyncio.to_thread(parse_json, name, text)
    return read


async def read_json(name: str, text: str | None) -> Any:
    """The value of an option in JSON; None where it was not given. BadInput, TooLarge."""
    if text is None:
        return None
    return await asyncio.to_thread(parse_json, name, text) if len(text) > _PARSE_IN_THREAD else parse_json(name, text)


def parse_json(name: str, text: str | bytes) -> Any:
    """The value of JSON text. BadInput, which names the option ``name``; TooLarge."""
    if len(text) > MAX_JSON:
        raise TooLarge(f"{name} has {len(text)} characters; at most {MAX_JSON} are read")
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{name} is not JSON: {error.msg} at character {error.pos}") from None
