"""Options of the inference operations: one model each for checking, for OpenAPI and for jobs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from ekiben.errors import BadInput, TooLarge

MAX_JSON = 4_000_000
"""Characters of an option that is JSON."""

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"


OptionsT = TypeVar("OptionsT", bound=BaseModel)


def check(kind: type[OptionsT], given: Mapping[str, Any]) -> OptionsT:
    """Options from what was given. BadInput names what is wrong or unknown."""
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
    of = f", not {short(repr(error['input']))}" if name else ""
    return f"{name}: {message[:1].lower()}{message[1:400]}{of}" if name else message[:400]


def short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


async def read_json(name: str, text: str | None) -> Any:
    """The value of an option that is JSON; None where it was not given. BadInput for what is no JSON, TooLarge."""
    if text is None:
        return None
    if len(text) > MAX_JSON:
        raise TooLarge(f"{name} has {len(text)} characters; at most {MAX_JSON} are read")
    return await asyncio.to_thread(_loads, name, text) if len(text) > 64_000 else _loads(name, text)


def _loads(name: str, text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise BadInput(f"{name} is not JSON: {error.msg} at character {error.pos}") from None
