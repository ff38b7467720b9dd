"""What keeps a server from starting is one line on the terminal and exit status 1, within seconds."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.serving import ROOT, environ


def start(home: Path, **settings: str) -> tuple[int, str, float]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "services"],
        cwd=ROOT,
        env=environ(home, **settings),
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr, time.monotonic() - began


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"EKIBEN_DATABASE_URL": "postgresql://127.0.0.1:1/x"}, "EKIBEN_DATABASE_URL: the database is unreachable"),
        ({"EKIBEN_DATABASE_URL": "mysql://x/y"}, "EKIBEN_DATABASE_URL"),
        ({"EKIBEN_STORE_URL": "s3://ekiben?endpoint=http://127.0.0.1:1"}, "EKIBEN_STORE_URL"),
        ({"EKIBEN_STORE_URL": "/proc/nope"}, "EKIBEN_STORE_URL"),
        ({"EKIBEN_PROT": "3000"}, "EKIBEN_PROT"),
        ({"EKIBEN_MODEL_MEMORY_MB": "plenty"}, "EKIBEN_MODEL_MEMORY_MB"),
    ],
)
def test_what_is_wrong_is_said_once(tmp_path: Path, settings: dict[str, str], words: str) -> None:
    status, text, seconds = start(tmp_path / "var", EKIBEN_PORT="0", **settings)
    assert status == 1
    last = text.strip().splitlines()[-1]
    assert words in last
    assert "Traceback" not in text
    assert seconds < 30


def test_a_taken_port(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, text, _ = start(tmp_path / "var", EKIBEN_PORT=str(port))
    assert status == 1
    assert f"port {port} on 127.0.0.1 is taken" in text
    assert "make serve PORT=" in text
