"""After a day's work nothing in the home can be read by other users, though the umask would let them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests import toy_models
from tests.serving import TOPOLOGIES, serving
from tests.waiting import eventually

RED = toy_models.encoded(toy_models.solid((255, 0, 0)))


@pytest.mark.parametrize("topology", ["embedded", pytest.param("split", marks=pytest.mark.acceptance)])
def test_a_whole_home_is_for_its_owner_alone(toy_home: Path, topology: str) -> None:
    before = os.umask(0)
    try:
        for path in (toy_home, *toy_home.rglob("*")):
            path.chmod(0o777 if path.is_dir() else 0o666)  # as an earlier version left it, at worst
        with serving(toy_home, EKIBEN_WORKERS="1", **TOPOLOGIES[topology]) as server, server.client() as client:
            answer = client.post("/v1/segment?model=areas", content=RED)
            assert answer.status_code == 200, answer.text
            job = client.post("/v1/classify?model=colours", content=RED, headers={"Prefer": "respond-async"}).json()
            eventually(lambda: client.get(f"/v1/jobs/{job['job_id']}").json()["state"] == "succeeded")
            assert client.get(f"/v1/jobs/{job['job_id']}/results.zip").status_code in (200, 404)
            during = open_to_others(toy_home)
        assert during == open_to_others(toy_home) == []
        assert "the home folder was open to others" in server.logs()
        assert len(list(toy_home.rglob("*"))) > 20
    finally:
        os.umask(before)


def open_to_others(home: Path) -> list[str]:
    """The log is the test's own file."""
    found = []
    for path in (home, *home.rglob("*")):
        try:
            mode = stat.S_IMODE(path.lstat().st_mode)
        except FileNotFoundError:
            continue  # a temporary file
        if mode & 0o077 and not path.is_symlink() and not path.name.startswith("server-"):
            found.append(f"{path.relative_to(home)} {mode:o}")
    return found
