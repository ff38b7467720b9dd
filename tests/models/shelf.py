"""An engine to try things on: real sessions of toys, sizes as the test says."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from models.engine.engine import Engine, ModelKey, ModelState
from models.engine.loader import LoadedNetwork, load_artifact
from models.engine.session_options import SessionOptions
from tests import toy_models

MEGABYTE = 1_000_000
BATCH = np.ones((1, 3, toy_models.SIDE, toy_models.SIDE), np.float32)


def key(name: str, version: int = 1) -> ModelKey:
    return ModelKey("local", name, version)


class Shelf:
    """An engine on one real toy, which says of each model the size that the test gives it (10 MB)."""

    def __init__(self, folder: Path, budget_mb: int = 30) -> None:
        self.folder = folder
        self.sizes_mb: dict[str, int] = {}
        self.broken: dict[str, Exception] = {}
        self.opened: list[str] = []
        self.openers: list[int] = []
        self.closed: list[str] = []
        self.slow = threading.Event()
        self.slow.set()
        self.engine = Engine(
            self.open,
            lambda k: self.size(k.name),
            budget_mb * MEGABYTE,
            lambda loaded: self.closed.append(loaded.key.name),
        )

    def size(self, name: str) -> int:
        return self.sizes_mb.get(name, 10) * MEGABYTE

    def open(self, model: ModelKey) -> LoadedNetwork:
        self.openers.append(threading.get_ident())
        self.opened.append(model.name)
        assert self.slow.wait(20)
        if model.name in self.broken:
            raise self.broken[model.name]
        loaded = load_artifact(model, self.folder, SessionOptions(device="cpu"))
        loaded.memory_bytes = self.size(model.name)
        return loaded

    def use(self, *names: str) -> None:
        for name in names:
            with self.engine.using(key(name)) as loaded:
                loaded.run(BATCH)

    def ready(self) -> list[str]:
        return sorted(s.key.name for s in self.engine.states() if s.state == "ready")

    def state(self, name: str) -> ModelState:
        return next(s for s in self.engine.states() if s.key.name == name)
