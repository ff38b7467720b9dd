from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ekiben.private_files import narrow_home, set_umask
from ekiben.settings import Settings


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(home: Path) -> dict[str, int]:
    return {
        path.relative_to(home).as_posix(): stat.S_IMODE(path.lstat().st_mode)
        for path in (home, *home.rglob("*"))
        if not path.is_symlink()
    }


def open_home(home: Path) -> Path:
    (home / "blobs" / "images").mkdir(parents=True)
    for name in ("ekiben.db", "blobs/images/a.jpg", "notes.txt"):
        (home / name).write_bytes(b"")
    (home / "blobs" / "tool").write_bytes(b"")
    (home / "blobs" / "tool").chmod(0o755)
    outside = home.parent / "outside"
    outside.write_bytes(b"")
    (home / "blobs" / "link").symlink_to(outside)
    return home


def test_an_open_home_is_closed_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    home = open_home(tmp_path / "var")
    settings = Settings(home=home)
    assert narrow_home(settings) == 6
    assert modes(home) == {
        ".": 0o700,
        "blobs": 0o700,
        "blobs/images": 0o700,
        "blobs/images/a.jpg": 0o600,
        "blobs/tool": 0o700,
        "ekiben.db": 0o600,
        "notes.txt": 0o666,  # not of Ekiben; the folder above keeps others out
    }
    assert stat.S_IMODE((tmp_path / "outside").stat().st_mode) == 0o666
    assert [record.getMessage() for record in caplog.records] == [
        "the home folder was open to others, and is not any more"
    ]
    (home / "ekiben.db").chmod(0o644)
    assert narrow_home(settings) == 0  # nobody can get there: the walk is spared


def test_a_home_that_is_a_link(tmp_path: Path) -> None:
    home = open_home(tmp_path / "disk")
    (tmp_path / "var").symlink_to(home)
    settings = Settings(home=tmp_path / "var")
    assert narrow_home(settings) == 6
    assert (modes(home)["."], modes(home)["ekiben.db"]) == (0o700, 0o600)
    assert narrow_home(settings) == 0
    (tmp_path / "next").symlink_to(tmp_path / "not yet there")
    assert narrow_home(Settings(home=tmp_path / "next")) == 1
    assert modes(tmp_path / "not yet there") == {".": 0o700}


def test_a_group_may_share_it(tmp_path: Path) -> None:
    home = open_home(tmp_path / "var")
    settings = Settings(home=home, group_access=True)
    assert narrow_home(settings) == 6
    assert (modes(home)["."], modes(home)["ekiben.db"], modes(home)["blobs/tool"]) == (0o770, 0o660, 0o750)
    assert narrow_home(settings) == 0
    set_umask(settings)
    (home / "blobs" / "new").write_bytes(b"")
    assert modes(home)["blobs/new"] == 0o660


def test_new_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "var")
    set_umask(settings)
    narrow_home(settings)
    (tmp_path / "var" / "blobs").mkdir()
    (tmp_path / "var" / "blobs" / "new").write_bytes(b"")
    assert modes(tmp_path / "var") == {".": 0o700, "blobs": 0o700, "blobs/new": 0o600}
