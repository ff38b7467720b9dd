"""Temporary files of processes that have ended are removed, and of no other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ekiben import temporary_files
from ekiben.temporary_files import ABANDONED_S, is_abandoned, scratch, sweep, sweep_scratch, temporary_name

ROOT = Path(__file__).parents[2]
NAMES = "from ekiben.temporary_files import temporary_name; print(temporary_name(), flush=True); input()"


@contextmanager
def writer(code: str = NAMES) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process, and the name of the file that it writes."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def aged(path: Path, seconds: float) -> Path:
    path.write_bytes(b"half")
    os.utime(path, (time.time() - seconds,) * 2)
    return path


def of_another_machine(name: str) -> str:
    return re.sub(r"\.tmp-[0-9a-f]{8}", ".tmp-00000000", name)


def test_what_a_living_process_writes_stays_however_old_and_goes_when_it_has_ended(tmp_path: Path) -> None:
    with writer() as (process, name):
        path = aged(tmp_path / name, 30 * ABANDONED_S)
        assert sweep([tmp_path]) == 0 and path.exists()
        process.kill()
        process.wait()
        assert sweep([tmp_path]) == 1 and not path.exists()


def test_a_zombie_has_ended(tmp_path: Path) -> None:
    with writer() as (process, name):
        path = aged(tmp_path / name, 0)
        process.kill()
        while Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2][0] != "Z":
            time.sleep(0.01)
        assert sweep([tmp_path]) == 1 and not path.exists()


def test_another_process_with_its_id_is_not_the_writer(tmp_path: Path) -> None:
    own = temporary_name()
    earlier = re.sub(rf"-{os.getpid()}-\d+-", f"-{os.getpid()}-1-", own)
    aged(tmp_path / own, 0), aged(tmp_path / earlier, 0)
    assert sweep([tmp_path]) == 1
    assert os.listdir(tmp_path) == [own]


def test_what_another_machine_or_container_writes_goes_once_it_is_silent_for_a_day(tmp_path: Path) -> None:
    name = of_another_machine(temporary_name())
    path = aged(tmp_path / name, ABANDONED_S - 60)
    assert sweep([tmp_path]) == 0
    assert sweep([tmp_path], now=lambda: time.time() + 120) == 1
    folder = tmp_path / name
    folder.mkdir()
    aged(folder / "deep", 0)
    os.utime(folder, (1.0, 1.0))
    assert not is_abandoned(folder)  # something in it was just written
    aged(folder / "deep", ABANDONED_S + 60)
    os.utime(folder, (1.0, 1.0))
    assert sweep([tmp_path]) == 1 and not path.exists()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is known of this machine is found out again, before and after."""
    temporary_files._machine.cache_clear()
    yield
    monkeypatch.undo()
    temporary_files._machine.cache_clear()


@pytest.mark.parametrize("case", ["not Linux", "/proc of others"])
def test_where_ids_of_processes_say_nothing_age_counts(
    case: str, machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readlink = os.readlink

    def read(path: str) -> str:
        if path != "/proc/self":
            return readlink(path)
        if case == "not Linux":
            raise FileNotFoundError(path)
        return str(os.getpid() + 1)

    monkeypatch.setattr(os, "readlink", read)
    if case == "not Linux":
        monkeypatch.setattr(temporary_files, "_start", lambda pid: None)
    path = aged(tmp_path / temporary_name(), ABANDONED_S - 60)
    assert temporary_name() != temporary_name()
    for _ in range(2):  # also as another process sees it
        assert sweep([tmp_path]) == 0 and path.exists()
        temporary_files._machine.cache_clear()
        monkeypatch.setattr(temporary_files, "_start", lambda pid: None)
    monkeypatch.setattr(os, "readlink", readlink)
    temporary_files._machine.cache_clear()
    assert sweep([tmp_path]) == 0
    assert sweep([tmp_path], now=lambda: time.time() + 120) == 1


def test_a_name_without_a_start(tmp_path: Path) -> None:
    path = aged(tmp_path / re.sub(r"-\d+-\d+-", f"-{os.getpid()}-0-", temporary_name()), 60)
    assert not is_abandoned(path)
    assert is_abandoned(path, lambda: time.time() + ABANDONED_S)


def test_a_process_whose_name_is_no_text(tmp_path: Path) -> None:
    code = f"open('/proc/self/comm', 'wb').write(b'\\xff) \\xfe'); {NAMES}"
    with writer(code) as (process, name):
        path = aged(tmp_path / name, 0)
        assert Path(f"/proc/{process.pid}/comm").read_bytes() == b"\xff) \xfe\n"
        assert "-0-" not in name
        assert sweep([tmp_path]) == 0 and path.exists()


def test_a_process_of_another_user_may_be_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with writer() as (process, name):
        path = aged(tmp_path / name, 0)
        process.kill()
        process.wait()
        monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
        assert not is_abandoned(path)
        assert is_abandoned(path, lambda: time.time() + ABANDONED_S + 60)


def test_other_files_stay(tmp_path: Path) -> None:
    for name in ("a.jpg", ".hidden", "x.part", ".partial-x", "ekiben-notes", "ekiben.db", ".tmp-files"):
        aged(tmp_path / name, 30 * ABANDONED_S)
    aged(tmp_path / ".tmp-0123456789abcdef", 30 * ABANDONED_S)  # as earlier versions named what they wrote
    aged(tmp_path / ".tmp-fedcba9876543210", 60)
    assert sweep([tmp_path, tmp_path / "missing"]) == 1
    assert not (tmp_path / ".tmp-0123456789abcdef").exists()
    assert len(os.listdir(tmp_path)) == 8
    assert sweep([tmp_path], old=temporary_files.OLD_CACHES) == 2  # x.part, .partial-x


def test_the_systems_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary_files.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "ekiben-of-somebody-else").mkdir()
    with scratch("import") as folder, writer() as (process, name):
        left = tmp_path / f"ekiben-export{name}"
        left.mkdir()
        assert sweep_scratch() == 0
        process.kill()
        process.wait()
        assert sweep_scratch() == 1
        assert Path(folder).is_dir() and not left.exists()
    assert os.listdir(tmp_path) == ["ekiben-of-somebody-else"]
