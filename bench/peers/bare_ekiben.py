"""(a') The bare loop with Ekiben's own reading of the picture: what its preprocessing gains or costs, without a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.peers.bare import Answer, main, open_session
from models.artifact import read_manifest
from models.classifier import Classifier
from models.images import decode


def _make_call(folder: Path) -> Callable[[bytes], Answer]:
    family = Classifier(read_manifest(folder))
    session = open_session(folder / "model.onnx")

    def call(data: bytes) -> Answer:
        picture = decode(data)
        logits = session.run(None, {"input": family.preprocess(picture)[None]})[0][0]
        best = family.postprocess(logits, picture, top_k=5).predictions
        return {"indices": [each.class_index for each in best], "confidences": [each.confidence for each in best]}

    return call


if __name__ == "__main__":
    main(_make_call)
