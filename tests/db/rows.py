"""Rows for these tests, complete and valid."""

from __future__ import annotations

from typing import Any

from db.tables import Artifact, Image, Prediction
from ekiben.ids import new_id


def image(**given: Any) -> Image:
    values: dict[str, Any] = {
        "filename": "street.jpg",
        "mime_type": "image/jpeg",
        "bytes": 61_204,
        "width": 640,
        "height": 427,
        "sha256": "a" * 64,
        "storage_key": f"images/2026/11/20/{new_id()}.jpg",
    }
    return Image(**{**values, **given})


def prediction(image_id: str, **given: Any) -> Prediction:
    values: dict[str, Any] = {
        "image_id": image_id,
        "task": "classify",
        "model_name": "resnet50",
        "model_version": 1,
        "parameters": {"top_k": 2},
        "result": {"top": [{"label": "tram", "score": 0.75}, {"label": "bus, großer", "score": 0.125}]},
        "status": "succeeded",
        "top_class": "tram",
        "top_confidence": 0.75,
        "queue_ms": 0.5,
        "inference_ms": 12.25,
    }
    return Prediction(**{**values, **given})


def artifact(prediction_id: str | None, **given: Any) -> Artifact:
    values: dict[str, Any] = {
        "prediction_id": prediction_id,
        "kind": "mask",
        "storage_key": f"artifacts/2026/11/20/{new_id()}.png",
        "mime_type": "image/png",
        "bytes": 2048,
        "sha256": "b" * 64,
    }
    return Artifact(**{**values, **given})
