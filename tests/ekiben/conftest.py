"""What the tests of the client share."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from tests.ekiben.clients import Clock


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ekiben._client.requests._FIRST_PAUSE_S", 0.001)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The time by which both clients pause and follow jobs."""
    made = Clock()
    monkeypatch.setattr("ekiben._client.job_watch.time", SimpleNamespace(monotonic=made))
    monkeypatch.setattr("ekiben.client.time", SimpleNamespace(sleep=made.sleep))
    paused = SimpleNamespace(sleep=made.async_sleep, to_thread=asyncio.to_thread)
    monkeypatch.setattr("ekiben._client.async_client.asyncio", paused)
    return made
