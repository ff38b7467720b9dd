"""Converts responses, dicts in both protocols, to dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import datetime
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ekiben._client.errors import EkibenError

T = TypeVar("T")


def read(kind: type[T], body: Mapping[str, Any], **more: Any) -> T:
    """An instance of the dataclass ``kind`` from the keys of ``body``. ``more``: fields that are not in ``body``.

    Unknown keys are ignored, since the server may be newer. A field ``raw`` gets the whole ``body``. Raises EkibenError
    ``bad_answer`` when a key is missing.
    """
    own: Any = kind  # mypy does not accept type[T] as hashable
    hints, required = _info(own)
    if missing := [name for name in required if name not in body and name not in more and name != "raw"]:
        raise EkibenError(f"the answer has no {missing[0]!r}: is this an Ekiben server?", code="bad_answer")
    given = {name: _value(hint, body[name]) for name, hint in hints.items() if name in body and name not in more}
    if "raw" in hints:
        given["raw"] = body
    return kind(**given, **more)


def read_all(kind: type[T], bodies: Any) -> tuple[T, ...]:
    """``read`` for each of a list of dicts."""
    return tuple(read(kind, body) for body in bodies)


@cache
def _info(kind: Any) -> tuple[dict[str, Any], list[str]]:
    """The types of a dataclass's fields, and the names of those without a default."""
    hints = get_type_hints(kind)
    own = [field for field in fields(kind) if field.init]
    required = [field.name for field in own if field.default is MISSING and field.default_factory is MISSING]
    return {field.name: hints[field.name] for field in own}, required


def _value(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    if get_origin(hint) in (Union, UnionType):
        hint = next(one for one in get_args(hint) if one is not NoneType)
    if get_origin(hint) is tuple:
        inner = get_args(hint)
        return tuple(_value(inner[0], one) for one in value)
    if is_dataclass(hint) and isinstance(hint, type):
        return read(hint, value)
    if hint is datetime:
        return datetime.fromisoformat(value)
    return hint(value) if hint in (int, float) else value
