"""(a') The bare loop with Ekiben's own reading of the image: what that gains or costs, without a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bench.peers.bare import Answer, main, open_session, top5
from models.artifact import read_manifest
from models.classifier import Classifier
from models.images import decode


def _make_call(folder: Path) -> Callable[[bytes], Answer]:
    family = Classifier(read_manifest(folder))
    session = open_session(folder / "model.onnx")
    return lambda data: top5(session.run(None, {"input": family.preprocess(decode(data))[None]})[0][0])


if __name__ == "__main__":
    main(_make_call)
