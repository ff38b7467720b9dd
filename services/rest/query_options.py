"""Options of a request, read from the query and the form fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import QueryParams

from ekiben.errors import BadInput
from services.schemas.validation import OptionsT, check, short


def parse(kind: type[OptionsT], query: QueryParams, fields: Mapping[str, str] | None = None) -> OptionsT:
    """The options ``kind`` from query and form fields. BadInput names what is wrong, unknown or given twice."""
    return check(kind, gather(query, fields))


def gather(query: QueryParams, fields: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Query and form fields by name. BadInput for a name given twice, and for NUL characters."""
    given: dict[str, Any] = {}
    for name, value in (*query.multi_items(), *(fields or {}).items()):
        if given.setdefault(name, value) != value or query.getlist(name)[1:]:
            raise BadInput(f"{short(name)} is given twice")
        if "\0" in value or "\0" in name:
            raise BadInput(f"{short(name)} holds a NUL character")
    return given
