"""The models bundled in a Bento, as BentoML sees them: an attribute of the gateway."""

from __future__ import annotations

from typing import Any

from _bentoml_sdk.models import BentoModel
from bentoml._internal.bento.bento import BentoModelInfo

from ekiben.settings import Settings
from services.bento.hosting import MODEL_STORE_TAG


class BundledModels(BentoModel):  # type: ignore[misc]
    """A class attribute of the gateway: one entry of the model store that holds the chosen artifact folders.

    ``bentoml build`` calls ``to_info``; at that moment the active versions of the registry (those named in
    EKIBEN_BENTO_MODELS, else all) are copied into the store. Serving from a checkout does not use it.
    """

    def __init__(self) -> None:
        super().__init__(MODEL_STORE_TAG)

    def to_info(self, alias: str | None = None) -> BentoModelInfo:
        """What the Bento's manifest states of the models.

        Called by ``bentoml build``: copies them into the model store.
        """
        from services.bento.model_store import write_to_model_store  # needed by a build only, never by a server

        written = write_to_model_store(Settings.from_environ())
        info: BentoModelInfo = BentoModel(written.tag).to_info(alias)
        return info

    def resolve(self, base_path: Any = None, global_model_store: Any = None) -> Any:
        """None. BentoML resolves a service's models before it serves a checkout, whose models are in the registry."""
        return None
