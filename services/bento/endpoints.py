"""The operations as methods that ``@bentoml.api`` describes in /schema.json, made from the table of operations."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import bentoml
from bentoml.validators import ContentType
from pydantic.fields import FieldInfo

from services.inference.operations import Operation
from services.schemas.body import to_dict
from services.schemas.validation import check

ServiceT = TypeVar("ServiceT", bound=type)

NOT_HERE = frozenset({"image_id"})
"""Options that an endpoint does not take: its image always comes with the call."""


def with_endpoints(operations: Iterable[Operation]) -> Callable[[ServiceT], ServiceT]:
    """A decorator that adds a Bento endpoint for each of ``operations`` to a service class whose instances have
    ``app_state``."""

    def add(service: ServiceT) -> ServiceT:
        for operation in operations:
            setattr(service, operation.name, bentoml.api(route=f"/{operation.name}")(_method(operation, service)))
        return service

    return add


def _method(operation: Operation, service: type) -> Callable[..., Awaitable[dict[str, Any]]]:
    """The endpoint as a function. Its parameters are the image and the options of the operation."""

    async def endpoint(self: Any, image: Path, **given: Any) -> dict[str, Any]:
        # Imported by a process that answers: BentoML's supervising one only reads the signatures.
        from services.inference.context import RequestContext
        from services.inference.pipeline import ImageSource

        options = check(operation.request, {name: value for name, value in given.items() if value is not None})
        source = ImageSource(await asyncio.to_thread(image.read_bytes), image.name)
        outcome = await operation.run(RequestContext(self.app_state.inference), source, options)
        response: dict[str, Any] = to_dict(outcome.body)
        return response

    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    image = inspect.Parameter("image", keyword, annotation=Annotated[Path, ContentType("image/*")])
    options = [
        inspect.Parameter(name, keyword, annotation=_annotation(field), default=field.get_default())
        for name, field in operation.request.model_fields.items()
        if name not in NOT_HERE
    ]
    parameters = [inspect.Parameter("self", keyword), image, *options]
    endpoint.__name__ = operation.name
    endpoint.__qualname__ = f"{service.__qualname__}.{operation.name}"
    endpoint.__module__ = service.__module__
    endpoint.__doc__ = f"{operation.summary}; the same answer as POST {operation.path}."
    endpoint.__signature__ = inspect.Signature(parameters, return_annotation=dict[str, Any])  # type: ignore[attr-defined]
    endpoint.__annotations__ = {each.name: each.annotation for each in parameters[1:]} | {"return": dict[str, Any]}
    return endpoint


def _annotation(field: FieldInfo) -> Any:
    """The type of an option with its bounds, as a function's parameter states it."""
    return Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
