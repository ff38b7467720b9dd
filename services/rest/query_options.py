"""Options of a request, read from the query and the form fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.datastructures import QueryParams

from ekiben.errors import BadInput
from services.schemas.validation import OptionsT, check, short

MAX_OPTIONS = 200
"""Names in one query."""


def parse(kind: type[OptionsT], query: QueryParams, fields: Mapping[str, str] | None = None) -> OptionsT:
    """The options ``kind`` from query and form fields. BadInput names what is wrong, unknown or given twice."""
    return check(kind, gather(query, fields))


def gather(query: QueryParams, fields: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Query and form fields by name. BadInput for a name given twice, for more than MAX_OPTIONS names, and for NUL
    characters."""
    given: dict[str, Any] = {}
    items = query.multi_items()
    if len(items) > MAX_OPTIONS:
        raise BadInput(f"the query has more than {MAX_OPTIONS} options")
    for at, (name, value) in enumerate((*items, *(fields or {}).items())):
        # A form field may repeat what the query says.
        if given.get(name, value) != value or (name in given and at < len(items)):
            raise BadInput(f"{short(name)} is given twice")
        given[name] = value
        if "\0" in value or "\0" in name:
            raise BadInput(f"{short(name)} holds a NUL character")
    return given
