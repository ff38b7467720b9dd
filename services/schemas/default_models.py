"""The default models, for requests that name none, where EKIBEN_DEFAULT_MODELS does not say otherwise."""

from __future__ import annotations

from typing import Final

from ekiben.settings import Settings

DEFAULT_MODELS: Final = Settings.model_construct().default_models_by_task
"""Names by task, in order of preference: the first that has a version."""

CLASSIFY = DEFAULT_MODELS["classify"]
SEGMENT = DEFAULT_MODELS["segment"]
MASKS = DEFAULT_MODELS["masks"]


def described(names: tuple[str, ...]) -> str:
    """The default, as the description of the option ``model`` has it."""
    return f"By default that of EKIBEN_DEFAULT_MODELS, at first {' or, where that has no version, '.join(names)}."
