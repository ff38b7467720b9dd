"""Forms of an answer besides JSON, which a caller chooses by the Accept header."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from services.inference.context import Outcome
from services.schemas.body import Body

BodyT = TypeVar("BodyT", bound=Body)
OptionsT = TypeVar("OptionsT")


def _unchanged(options: Any) -> Any:
    return options


@dataclass(frozen=True, slots=True)
class Representation(Generic[BodyT, OptionsT]):
    """An answer as ``media_type``.

    ``prepare``: the options that the operation is run with, so that this form can be given. ``encode``: the bytes and
    their MIME type, of the outcome and those options; it runs on a thread. ``filename``: as which it is saved.
    """

    media_type: str
    encode: Callable[[Outcome[BodyT], OptionsT], tuple[bytes, str]]
    prepare: Callable[[OptionsT], OptionsT] = _unchanged
    filename: str | None = None
