"""The limit of open files: raised, divided, said when it is low, and told apart when it is reached."""

from __future__ import annotations

import errno
import logging
import resource
from typing import Any

import pytest

from ekiben.errors import Unavailable
from services import error_codes
from services.processes.open_files import most_connections, raise_open_files, warn_of_low_limit
from services.rest.error_handlers import response_for


@pytest.mark.parametrize(
    ("soft", "hard", "then"),
    [
        (1024, 4096, 4096),
        (1024, 1_048_576, 65_536),
        (1024, resource.RLIM_INFINITY, 65_536),
        (100_000, 1_048_576, 100_000),
        (1024, 1024, 1024),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 65_536),
    ],
)
def test_the_limit_is_raised(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, then: int) -> None:
    held = [soft, hard]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(held))
    monkeypatch.setattr(resource, "setrlimit", lambda _, wanted: held.__setitem__(slice(None), wanted))
    assert raise_open_files() == then
    assert held[1] == hard


def test_a_limit_that_cannot_be_raised_is_what_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_open_files() == 256


def test_connections_leave_files_for_the_rest() -> None:
    assert most_connections(65_536, 0) == 65_024
    assert most_connections(1024, 0) == 512
    assert most_connections(1024, 200) == 200
    assert most_connections(1024, 5000) == 512  # more than there is room for
    assert most_connections(256, 0) == 128
    assert most_connections(20, 0) == 16


def test_a_low_limit_is_said(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_low_limit(65_536, 65_024)
    assert not caplog.records
    warn_of_low_limit(1024, 512)
    assert [line.getMessage().split(";")[0] for line in caplog.records] == ["the limit of open files is low"]


def test_too_many_open_files_are_said_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_codes._too_many_files, "_at", -1e9)
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            try:
                try:
                    raise OSError(errno.EMFILE, "Too many open files")
                except OSError as error:
                    raise RuntimeError("the store") from error
            except RuntimeError as error:
                answer = response_for(error)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
    assert [line.getMessage() for line in caplog.records] == ["too many open files"]
    assert isinstance(error_codes.presentable(OSError(errno.ENFILE, "table full")), Unavailable)
    other = OSError(errno.ENOENT, "gone")
    assert error_codes.presentable(other) is other
