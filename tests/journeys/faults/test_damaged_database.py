"""A SQLite file that is damaged, emptied or gone: refused at start in words, told while it is served."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import toy_models
from tests.serving import ROOT, environ, free_port, serving
from tests.waiting import eventually

RED = toy_models.encoded(toy_models.solid((255, 0, 0)))
PAGE = 4096


def alone(home: Path) -> Path:
    """The database file, without the log that SQLite keeps beside it."""
    for ending in ("-wal", "-shm"):
        (home / f"ekiben.db{ending}").unlink(missing_ok=True)
    return home / "ekiben.db"


def emptied(home: Path) -> None:
    alone(home).write_bytes(b"")


def gone(home: Path) -> None:
    alone(home).unlink()


def overwritten(home: Path) -> None:
    database = alone(home)
    data = bytearray(database.read_bytes())
    data[2 * PAGE : 6 * PAGE] = b"\xa5" * (4 * PAGE)
    database.write_bytes(data)


def truncated(home: Path) -> None:
    database = alone(home)
    database.write_bytes(database.read_bytes()[: 5 * PAGE])


@pytest.mark.parametrize(
    ("module", "damage", "words"),
    [
        ("services", emptied, "is empty (0 bytes), but the blob store"),
        ("services", overwritten, "is damaged ("),
        ("services", gone, "is missing, but the blob store"),
        ("services.worker", emptied, "the worker cannot start: "),
        ("services.worker", truncated, "is damaged (database disk image is malformed)"),
        ("export.provision", emptied, "is empty (0 bytes)"),
    ],
)
def test_a_start_refuses_it_in_a_line(module: str, damage: Callable[[Path], None], words: str, toy_home: Path) -> None:
    damage(toy_home)
    arguments = ["--no-download"] if module == "export.provision" else []
    ended = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environ(toy_home, EKIBEN_PORT=str(free_port())),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    assert words in ended.stderr and str(toy_home / "ekiben.db") in ended.stderr
    assert "restore a backup" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) <= 2


def test_damage_while_it_is_served(toy_home: Path) -> None:
    with serving(toy_home) as server, server.client() as client:
        for _ in range(30):
            assert client.post("/v1/classify?model=colours", content=RED).status_code == 200
        database = toy_home / "ekiben.db"
        for path in (database, toy_home / "ekiben.db-wal"):  # as a disk loses pages
            size = path.stat().st_size
            with path.open("r+b") as file:
                file.seek(PAGE)
                file.write(b"\xa5" * (size - PAGE))
        refused = client.get("/v1/predictions")
        assert refused.status_code == 503, refused.text
        assert refused.json()["error"]["code"] == "database_damaged"
        assert int(refused.headers["retry-after"]) > 0
        eventually(lambda: client.get("/readyz").status_code == 503)
        detail = client.get("/readyz").json()["parts"]["database"]["detail"]
        assert detail.startswith("the database is damaged")
        assert client.post("/v1/classify?model=colours", content=RED).status_code == 503
        assert client.post("/v1/classify?model=colours&store=false", content=RED).status_code == 200
        assert client.get("/livez").status_code == 200
