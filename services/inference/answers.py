"""Parts that the answers of all operations have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.inference_requests import EmbeddingUse
from models.results import ImageInfo
from services.inference.recording import RecordIds
from services.model_registry.index import ServableModel
from services.schemas.body import ImageRef, ModelRef
from services.schemas.masks import EmbeddingBody


def head(ids: RecordIds, servable: ServableModel, image: ImageInfo) -> dict[str, Any]:
    """The fields with which every answer begins: id, model and image."""
    return {
        "id": ids.prediction,
        "model": ModelRef(name=servable.key.name, version=servable.key.version),
        "image": ImageRef(id=ids.image, width=image.width, height=image.height, range=list(image.value_range or ())),
    }


def artifact_urls(artifacts: Mapping[str, str]) -> dict[str, str]:
    """Where the files of an answer are: by kind, of artifact ids by kind."""
    return {kind: f"/v1/artifacts/{ident}" for kind, ident in artifacts.items()}


def embedding_body(use: EmbeddingUse) -> EmbeddingBody:
    """Whether the embedding was there, and what making it took, in milliseconds."""
    return EmbeddingBody(cached=use.cached, encode_ms=round(use.encode_ms, 3))
