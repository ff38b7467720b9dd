"""What killed processes leave behind is swept when a server starts, by every worker, and never while it is written."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from db.folder_store import FolderStore
from ekiben.settings import Settings
from ekiben.temporary_files import ABANDONED_S, temporary_name
from services.jobs.temporary_files import sweep_temporary_files
from tests.serving import ROOT, environ
from tests.waiting import eventually

WRITES = """
import sys, threading
from pathlib import Path
from db.folder_store import FolderStore

class Endless:
    def read(self, size):
        print(flush=True)
        threading.Event().wait(0.01)
        return b"x" * size

store = FolderStore(Path(sys.argv[1]))
store._write(store._path("images/a.jpg"), Endless())
"""


def test_a_killed_writer_leaves_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "blobs")
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES, str(store.root)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    left = eventually(lambda: [path for path in store.root.rglob("*") if path.is_file()])
    assert store.remove_abandoned() == store.remove_abandoned(everywhere=True) == 0
    process.kill()
    process.wait()
    assert left[0].exists() and list(store.list("")) == []
    assert store.remove_abandoned() == 1
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_a_sweep_disturbs_no_writer(tmp_path: Path) -> None:
    """Two processes write into a store that a third one sweeps all the time."""
    writes = (
        "import sys; from pathlib import Path; from db.folder_store import FolderStore\n"
        "store = FolderStore(Path(sys.argv[1]))\n"
        "for n in range(150): store.put(f'images/{sys.argv[2]}/{n}.jpg', b'x' * 5000, 'image/jpeg')"
    )
    store = FolderStore(tmp_path)
    processes = [subprocess.Popen([sys.executable, "-c", writes, str(tmp_path), name], cwd=ROOT) for name in ("a", "b")]
    swept = 0
    while any(process.poll() is None for process in processes):
        swept += store.remove_abandoned(everywhere=True)
    assert [process.returncode for process in processes] == [0, 0]
    assert swept == 0
    assert len(list(store.list("images/"))) == 300


def test_every_place_is_swept_when_a_server_starts(tmp_path: Path) -> None:
    home, system = tmp_path / "var", tmp_path / "tmp"
    ended = subprocess.run(
        [sys.executable, "-c", "from ekiben.temporary_files import temporary_name; print(temporary_name())"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    places = [
        home / "blobs" / ".tmp-files",
        home / "blobs",
        home / "downloads",
        home / "cache" / "datasets",
        home / "models" / "local" / "unet",
    ]
    left, kept = [], []
    for place in (*places, system):
        place.mkdir(parents=True, exist_ok=True)
        prefix = "ekiben-import" if place == system else ""
        left.append(place / f"{prefix}{ended}")
        kept.append(place / f"{prefix}{temporary_name()}")  # of this test, which lives
    old = [home / "downloads" / "x.pth.ab12cd34.part", home / "models" / "local" / "unet" / ".partial-ab12cd34"]
    for path in (*left, *kept, *old):
        path.mkdir() if "unet" in str(path) else path.write_bytes(b"half")
    for path in old:
        os.utime(path, (time.time() - ABANDONED_S - 60,) * 2)
    done = subprocess.run(
        [sys.executable, "-m", "services.processes.preflight"],
        cwd=ROOT,
        env=environ(home) | {"TMPDIR": str(system)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [path for path in (*left, *old) if path.exists()] == []
    assert [path for path in kept if not path.exists()] == []
    assert "temporary files of processes that have ended were removed" in done.stderr
    assert sweep_temporary_files(Settings(home=home), FolderStore(home / "blobs")) == 0
