"""Trainings here use one thread, which is fastest for so small networks, and leave torch as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch", reason="needs torch's environment (.venv-torch)")
pytest.importorskip("monai", reason="needs MONAI: pip install 'ekiben[training]'")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
