"""The models that a Bento carries, as BentoML sees them: an attribute of the gateway."""

from __future__ import annotations

from typing import Any

from _bentoml_sdk.models import BentoModel
from bentoml._internal.bento.bento import BentoModelInfo

from ekiben.settings import Settings
from services.bento.hosting import MODEL_STORE_TAG


class BundledModels(BentoModel):  # type: ignore[misc]
    """A class attribute of the gateway: one entry of the model store that holds the chosen artifact folders.

    ``bentoml build`` asks a service's models for their facts; that is the moment at which the active versions of the
    registry (those named in EKIBEN_BENTO_MODELS, else all) are copied into the store. Serving from a checkout never
    looks at it.
    """

    def __init__(self) -> None:
        super().__init__(MODEL_STORE_TAG)

    def to_info(self, alias: str | None = None) -> BentoModelInfo:
        from services.bento.model_store import write_to_model_store  # the build's work; a server never needs it

        written = write_to_model_store(Settings.from_environ())
        info: BentoModelInfo = BentoModel(written.tag).to_info(alias)
        return info

    def resolve(self, base_path: Any = None, global_model_store: Any = None) -> Any:
        """Nothing: BentoML resolves a service's models before it serves a checkout; those are in the registry."""
        return None
