"""Asking an operation in this process, as a transport does: the answer as JSON has it, and the images besides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from ekiben.ids import LOCAL_OWNER
from models.masks.cut_style import CutStyle
from models.sam.auto_options import AutoOptions
from services.app_state import AppState
from services.inference.context import Outcome, RequestContext
from services.inference.operations import operation
from services.inference.pipeline import ImageSource
from services.schemas.body import to_dict
from services.schemas.validation import check


@dataclass(frozen=True)
class Answered:
    """``images`` by name, as ``Outcome``."""

    body: dict[str, Any]
    images: dict[str, bytes]


async def outcome(
    app_state: AppState, name: str, source: ImageSource, *, owner: str = LOCAL_OWNER, **options: Any
) -> Outcome[Any]:
    """What the operation gives, its options checked as those of a request."""
    row = operation(name)
    return await row.run(RequestContext(app_state.inference, owner=owner), source, check(row.request, options))


async def ask(app_state: AppState, name: str, source: ImageSource, **options: Any) -> Answered:
    found = await outcome(app_state, name, source, **options)
    return Answered(orjson.loads(orjson.dumps(to_dict(found.body))), dict(found.images))


async def prompt(app_state: AppState, source: ImageSource, prompts: Any = None, **options: Any) -> dict[str, Any]:
    """The answer of ``masks``."""
    return (await ask(app_state, "masks", source, prompts=prompts, **options)).body


async def automatic(app_state: AppState, source: ImageSource, auto: AutoOptions, **options: Any) -> dict[str, Any]:
    """The answer of ``auto_masks``."""
    return (await ask(app_state, "auto_masks", source, **auto.model_dump(exclude_unset=True), **options)).body


async def cut_out(
    app_state: AppState,
    source: ImageSource,
    prompts: Any = None,
    auto: AutoOptions | None = None,
    *,
    style: CutStyle | None = None,
    **options: Any,
) -> tuple[dict[str, Any], list[bytes]]:
    """The answer of ``cutouts``, and the PNGs."""
    style = style or CutStyle()
    given = {"frame": style.frame, "padding_px": style.padding_px, "feather_px": style.feather_px}
    more = auto.model_dump(exclude_unset=True) if auto is not None else {}
    found = await ask(app_state, "cutouts", source, prompts=prompts, **given, **more, **options)
    return found.body, list(found.images.values())
